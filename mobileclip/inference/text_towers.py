"""Text towers beside a model's own: those that replace it, and those that share the texts with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from mobileclip.encoders import DualEncoder, DualEncoderSpec, TextEncoderSpec
from mobileclip.encoders.checkpoints import ModelSpec, Stored, companion, read_checkpoint
from mobileclip.encoders.checkpoints.saving import UNTAUGHT, Taught
from mobileclip.extras import VERSION
from mobileclip.inference.forms import ReadyDualEncoder
from mobileclip.inference.identity import ModelIdentity
from mobileclip.reparam import reparameterize
from mobileclip.serialization import to_json
from mobileclip.tensor_files.weights import weights_sha256

if TYPE_CHECKING:
    from mobileclip.data.text.ngrams import KnownNgrams
    from mobileclip.data.text.tokenizer import Tokenizer


def identity_of(model: DualEncoder) -> ModelIdentity:
    """Return what identifies a model in embeddings of it.

    Args:
        model: in the form that it is stored in.
    """
    return ModelIdentity(
        weights_sha256=weights_sha256(model.state_dict()),
        spec=to_json(model.spec, unstructure_as=DualEncoderSpec),
        version=VERSION,
    )


def stored_space(stored: Stored, place: str | Path) -> ModelIdentity:
    """Return the space of what a checkpoint holds: the one that it names, or a model's own.

    Raises:
        ValueError: if it is a tower, or a classifier, that names none.
    """
    if stored.taught.space:
        try:
            return ModelIdentity.from_json(stored.taught.space)
        except ValueError as error:
            raise ValueError(f"the space that {place} names cannot be read: {error}") from None
    if not isinstance(stored.spec, DualEncoderSpec):
        raise ValueError(
            f"{place} holds no model with both towers, and does not say whose space it embeds into; give the model, or "
            "a tower that was distilled from one, or cut out by `mobileclip convert MODEL --tower text|image -o FILE`"
        )
    model = stored.build()
    assert isinstance(model, DualEncoder), "its spec is one's"
    return identity_of(model)


def converted_from(source: str | Path, model: str | ModelSpec | None, stored: Stored) -> Taught:
    """Return what is known of a part, or another form, of what a checkpoint holds: it stays in the same space.

    Args:
        source: the checkpoint.
        model: that it holds, where it does not say so.
        stored: the part, or the whole.
    """
    if stored.taught.space:
        return stored.taught
    whole = read_checkpoint(source, model)
    space = stored_space(whole, source).to_json() if isinstance(whole.spec, DualEncoderSpec) else ""
    return attrs.evolve(stored.taught, space=space)


def read_text_tower(
    place: str | Path,
    space: Callable[[], ModelIdentity],
    *,
    model: str,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return the text tower in a checkpoint, in evaluation mode, to encode texts for another model.

    Args:
        place: its file, a folder with one, or the name of a packaged model with a second text tower.
        space: gives that of the model.
        model: what the model is called, for messages.
        fold: whether it is folded.
        dtype: of its weights.
        device: where to.

    Raises:
        FileNotFoundError, CheckpointError: if there is no such tower.
        ValueError: if it speaks another space than the model's, or names none.
    """
    stored = read_checkpoint(companion(place) or place)
    if not isinstance(stored.spec, TextEncoderSpec):
        raise ValueError(
            f"{place} holds no text tower alone; a text model is one that `mobileclip train distil_text` leaves, or "
            "`mobileclip convert MODEL --tower text -o FILE`"
        )
    own, wanted = stored_space(stored, place), space()
    if not own.is_same(wanted):
        raise ValueError(
            f"{place} speaks the space of {_called(own)}, not that of {model} ({_called(wanted)}); distil one from "
            f"{model}'s text tower with `mobileclip train distil_text -m {model}`"
        )
    tower = stored.build()
    if fold and stored.form != "folded":
        tower = reparameterize(tower, inplace=True)
    return tower.requires_grad_(requires_grad=False).to(device=device, dtype=dtype)


def with_text_tower(model: DualEncoder, tower: nn.Module) -> DualEncoder:
    """Return a model with another text tower; it shares the image tower and the logit scale.

    Raises:
        ValueError: if their embeddings differ in length.
    """
    kind = ReadyDualEncoder if isinstance(model, ReadyDualEncoder) else DualEncoder
    other = kind(model.image_encoder, tower, max_logit_scale=model.max_logit_scale)
    other.logit_scale = model.logit_scale
    other.training = False
    assert other.spec, "the towers embed into one space"
    return other


@attrs.frozen(eq=False)
class TextSide:
    """A model whose text tower encodes texts, with its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: for its text tower.
        known: n-grams that the tower was taught; None where nothing says it.
    """

    model: DualEncoder
    tokenizer: Tokenizer
    known: KnownNgrams | None

    @classmethod
    def of(cls, model: DualEncoder) -> TextSide:
        """Return the side of a model."""
        from mobileclip.data.text.ngrams import KnownNgrams
        from mobileclip.data.text.tokenizer import Tokenizer

        packed = getattr(model.text_encoder, "taught", UNTAUGHT).ngrams
        # A tower may bring what no contract describes.
        tokenizer = getattr(model.text_encoder, "tokenizer", None) or Tokenizer(model.spec.text.input)
        return cls(model, tokenizer, None if packed is None else KnownNgrams(packed))

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        weight = next(self.model.text_encoder.parameters(), self.model.logit_scale)
        return weight.device


def routed(texts: Sequence[str], sides: Sequence[TextSide]) -> list[list[int]]:
    """Return the numbers of the texts of every side: that which knows the largest share of a text's n-grams.

    Of equals, the first has it, and one that does not say what it knows, knows nothing.
    """
    if len(sides) == 1:
        return [list(range(len(texts)))]
    numbers: list[list[int]] = [[] for _ in sides]
    for number, text in enumerate(texts):
        shares = [0.0 if side.known is None else side.known.share(text) for side in sides]
        numbers[shares.index(max(shares))].append(number)
    return numbers


def _called(identity: ModelIdentity) -> str:
    return f"the model with the weights {identity.weights_sha256[:12]}"
