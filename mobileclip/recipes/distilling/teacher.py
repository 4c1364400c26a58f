"""Opens any model by name or file as the teacher of a text tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data import Tokenizer
from mobileclip.encoders import DualEncoderSpec, TextEncoderSpec, load_model
from mobileclip.encoders.checkpoints import PRETRAINED, Stored, read_checkpoint
from mobileclip.encoders.checkpoints.published import is_export
from mobileclip.evaluation.candidates import asked
from mobileclip.inference.loading import load, require_model
from mobileclip.inference.text_towers import stored_space
from mobileclip.inputs import TextInput
from mobileclip.reinforce import TextTeacher
from mobileclip.reparam import reparameterize
from mobileclip.tensor_files.weights import weights_sha256


@attrs.frozen(kw_only=True, eq=False)
class OpenedTeacher:
    """A teacher of texts, and what a student takes from it.

    Args:
        teacher: encodes the texts.
        text: its text contract.
        space: identity of the model whose space its embeddings are in, as JSON.
        tower: returns its text tower in training form, for a context length; None where it has none.
    """

    teacher: TextTeacher
    text: TextInput = attrs.field(factory=TextInput)
    space: str = ""
    tower: Callable[[int], nn.Module] | None = None


@attrs.frozen(kw_only=True, eq=False)
class _Named:
    """A teacher of texts, see `TextTeacher`."""

    name: str
    weights_sha256: str
    dim: int
    encode_texts: Callable[[Sequence[str]], Tensor]


def require_teacher(text: str) -> None:
    """Refuse a teacher that `open_teacher` would refuse for its name: nothing is read, and nothing is fetched.

    Raises:
        ValueError, FileNotFoundError: see `open_teacher`.
    """
    require_model(*asked(text).source)


def open_teacher(text: str, *, device: str = "cpu", trust: bool = False) -> OpenedTeacher:
    """Return the teacher that a person names.

    Args:
        text: as `DistilSpec` takes it.
        device: where it computes.
        trust: whether to open an export that may run code here; see `mobileclip.load`.

    Raises:
        ValueError: if there is no such model, or what it needs is not installed.
        FileNotFoundError: if there is no such file.
    """
    one = asked(text)
    place = one.file or PRETRAINED.get(one.model or "")
    space = tower = None
    if place is not None and not is_export(place):
        stored = read_checkpoint(place, one.model, mmap=True)
        if isinstance(stored.spec, TextEncoderSpec):
            return _of_tower(stored, place, device)
        if stored.taught.space or not isinstance(stored.spec, DualEncoderSpec):  # else its own, which comes with it
            space = stored_space(stored, place)
        tower = partial(_trainable, place, one.model)
    clip = load(*one.source, device=device, trust=trust, identify=True)
    identity = clip.identity
    assert identity is not None, "it was asked for"
    teacher = _Named(
        name=one.name,
        weights_sha256=identity.weights_sha256,
        dim=clip.model.spec.image.embedding_dim,
        encode_texts=clip.encode_text,
    )
    return OpenedTeacher(
        teacher=teacher, text=clip.model.spec.text.input, space=(space or identity).to_json(), tower=tower
    )


def _trainable(place: str, model: str | None, context_length: int) -> nn.Module:
    """Return the text tower of a checkpoint in training form, cut to a context length."""
    return load_model(place, model, tower="text", fold=False, context_length=context_length)


def _of_tower(stored: Stored, place: str, device: str) -> OpenedTeacher:
    """Return a text tower alone as a teacher."""
    spec = stored.spec
    assert isinstance(spec, TextEncoderSpec), "asked before"
    built = stored.build()
    model = built if stored.form == "folded" else reparameterize(built, inplace=True)
    model.requires_grad_(requires_grad=False).to(device)
    tokenizer = Tokenizer(spec.input)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        embedding: Tensor = model(tokenizer(texts).to(device))
        return embedding.float().cpu()

    return OpenedTeacher(
        teacher=_Named(
            name=asked(place).name,
            weights_sha256=weights_sha256(stored.tensors),
            dim=spec.embedding_dim,
            encode_texts=encode,
        ),
        text=spec.input,
        space=stored.taught.space,
        tower=partial(_trainable, place, None),
    )
