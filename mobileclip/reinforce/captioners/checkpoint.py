"""A captioner of this library, trained here or elsewhere, as a captioner of reinforcement."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from mobileclip.data import Tokenizer
from mobileclip.data.samples.sample import SYN_TEXT
from mobileclip.encoders.checkpoints import load_coca
from mobileclip.hardware.precision import dtype_of
from mobileclip.inputs import TextInput
from mobileclip.reinforce.captioners.ensemble import CaptionSet, SeveralCaptioners
from mobileclip.reinforce.captioners.nucleus import NucleusCaptioner, NucleusSpec
from mobileclip.reinforce.captioners.spec import CaptionerSpec, captioners
from mobileclip.strict import strict
from mobileclip.tensor_files.weights import weights_sha256


@captioners.register("checkpoint")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CheckpointCaptioner(NucleusSpec):
    """Captions of a `CoCa` in a file, by nucleus sampling, as `CocaCaptioner` writes them; open_clip is not needed.

    Args:
        checkpoint: a file of ours or of open_clip's, see `load_coca`, a checkpoint of a run, or `hf-hub:OWNER/NAME`.
    """

    checkpoint: str = attrs.field(converter=os.fspath)

    def build(self, device: str = "cpu") -> NucleusCaptioner:
        """Return the captioner, its weights loaded.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it holds no captioner.
            ValueError: if its context is shorter than `max_length`, or its texts have no start token.
        """
        model = load_coca(self.checkpoint).requires_grad_(requires_grad=False)
        sha256, text = weights_sha256(model.state_dict()), model.spec.text.input
        name = f"{Path(self.checkpoint).stem}-{sha256[:8]}"
        model.to(device=device, dtype=dtype_of(self.precision))
        return NucleusCaptioner(
            self,
            name=name if self.precision == "float32" else f"{name}/{self.precision}",
            weights_sha256=sha256,
            image=model.spec.image.input,
            place=model.logit_scale,
            encode=lambda images: model.image_tokens(images)[1],
            decoder=model,
            vocabulary=_Vocabulary(text),
            context_length=text.context_length,
        )


def with_weights(captioner: NucleusSpec, weights: Sequence[str]) -> CaptionerSpec:
    """Return a captioner with the weights and the architecture of each file, in sets of their own for several files.

    Args:
        captioner: whose other choices are kept.
        weights: as `CheckpointCaptioner` takes a checkpoint; the set of NAME.pt and of hf-hub:OWNER/NAME is
            `syn_text_NAME`.

    Raises:
        ValueError: if two files have one name.
    """
    kept = {name: getattr(captioner, name) for name in attrs.fields_dict(NucleusSpec)}  # type: ignore[type-abstract]
    own = [CheckpointCaptioner(checkpoint=one, **kept) for one in weights]
    if len(own) == 1:
        return own[0]
    names = [Path(re.sub(r"^(hf-hub:[^@#]*).*", r"\1", one)).stem for one in weights]
    return SeveralCaptioners(
        sets=tuple(
            CaptionSet(name=f"{SYN_TEXT}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}", captioner=one)
            for name, one in zip(names, own, strict=True)
        )
    )


class _Vocabulary:
    """The vocabulary of a captioner's texts.

    Args:
        text: their contract.

    Raises:
        ValueError: if captions cannot begin.
    """

    def __init__(self, text: TextInput) -> None:
        if text.start_id is None:
            raise ValueError("captions begin with a start token, and this model's tokenizer has none")
        self.start_id, self.end_id, self._tokenizer = text.start_id, text.end_id, Tokenizer(text)
        special = {text.start_id, text.end_id, text.pad_id}
        words = ["" if index in special else self._tokenizer.decode([index]) for index in range(text.vocab_size)]
        self.stops = torch.tensor([index == text.end_id or "." in word for index, word in enumerate(words)])

    def text(self, ids: Sequence[int]) -> str:
        """Return the caption: up to the first full stop or the end, without it."""
        return self._tokenizer.decode(ids).split(".", maxsplit=1)[0].strip()
