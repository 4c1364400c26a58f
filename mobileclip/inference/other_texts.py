"""Loads extra text towers beside a model's own, or in place of it."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import nn

from mobileclip.encoders import DualEncoderSpec
from mobileclip.encoders.checkpoints import ModelSpec, companion, read_checkpoint
from mobileclip.encoders.checkpoints.published import is_export
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.text_towers import identity_of, read_text_tower, stored_space, with_text_tower


@attrs.frozen(kw_only=True)
class OtherTexts:
    """The text towers that encode texts beside a model's own, or in place of it.

    Args:
        model: as it was asked for.
        place: of its checkpoint.
        wanted: what is asked of the checkpoint.
        text_model: a tower in place of the model's own; None for the model's own.
        any_language: whether the second text tower will do that comes with the package for the same file.
        fold: whether towers are folded.
        dtype: of their weights.
    """

    model: str | Path | DualEncoderSpec | None
    place: str | Path
    wanted: str | ModelSpec | None
    text_model: str | Path | None
    any_language: bool = False
    fold: bool = True
    dtype: torch.dtype = torch.float32

    def beside(self, clip: ImageTextModel, *, device: str | torch.device) -> ImageTextModel:
        """Return the model with the text towers that are asked for."""
        if self.text_model is not None:
            tower = self._read(self.text_model, clip, device)
            with_texts = with_text_tower(clip.model, tower)
            return ImageTextModel(with_texts, num_threads=clip.num_threads, decode=clip.decode, identity=clip.identity)
        second = companion(self.place, of_file=self.any_language)
        if second is not None:
            tower = self._read(second, clip, device)
            return ImageTextModel(
                clip.model,
                num_threads=clip.num_threads,
                text_towers=(tower,),
                decode=clip.decode,
                identity=clip.identity,
            )
        return clip

    def _read(self, place: str | Path, clip: ImageTextModel, device: str | torch.device) -> nn.Module:
        def space() -> ModelIdentity:
            if is_export(self.place):
                return identity_of(clip.model)
            return stored_space(read_checkpoint(self.place, self.wanted), self.place)

        name = str(self.model) if isinstance(self.model, str | Path) else str(self.place)
        return read_text_tower(place, space, model=name, fold=self.fold, dtype=self.dtype, device=device)


def require_own_context(context_length: int | None, text_model: str | Path | None) -> None:
    """Refuse a context length beside a text tower, which has its own.

    Raises:
        ValueError: if both are given.
    """
    if context_length is not None and text_model is not None:
        raise ValueError(
            f"{text_model} has a context length of its own; leave the context length out, or write the tower at "
            "another one: mobileclip convert FILE -o SHORT.safetensors --context-length N"
        )
