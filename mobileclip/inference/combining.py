"""One model of the image tower of one file and the text tower of another."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mobileclip.encoders import DualEncoder, DualEncoderSpec, ImageEncoderSpec
from mobileclip.encoders.checkpoints import Stored, Taught, read_checkpoint
from mobileclip.inference.loading import place_of
from mobileclip.inference.text_towers import read_text_tower, stored_space, with_text_tower
from mobileclip.reparam import is_folded, reparameterize


def combine(image: str | Path, text: str | Path, *, checkpoint: str | Path | None = None) -> DualEncoder:
    """Return a dual encoder of an image tower and a text tower of its space, in evaluation mode.

    `mobileclip.encoders.save_model` writes it as any model; the file names the space, and what the text tower was
    taught. Where one of the towers is folded, both are.

    Args:
        image: a model as `mobileclip.load` takes it, whose logit scale is kept; or an image tower alone that names its
            space, with the scale that models start with.
        text: a text tower alone, see `text_model` of `mobileclip.load`.
        checkpoint: weights of a model that is given by name.

    Raises:
        FileNotFoundError, CheckpointError: if there is no such file.
        ValueError: if the text tower is of another space, or a file holds something else.
    """
    wanted, found = place_of(image, checkpoint)
    stored = read_checkpoint(found, wanted)
    space = stored_space(stored, found)
    tower = read_text_tower(text, lambda: space, model=str(image), fold=False)
    model = with_text_tower(_whole(stored, tower, found), tower)
    if is_folded(model.image_encoder) != is_folded(tower):
        model = reparameterize(model)
    model.taught = Taught(space=space.to_json())  # type: ignore[assignment]
    return model.requires_grad_(requires_grad=False)


def _whole(stored: Stored, tower: nn.Module, place: str | Path) -> DualEncoder:
    """Return a model with the image tower of what a checkpoint holds."""
    built = stored.build()
    if isinstance(stored.spec, ImageEncoderSpec):
        return DualEncoder(built, tower)
    if not isinstance(stored.spec, DualEncoderSpec):
        raise ValueError(f"{place} holds no image tower of an image-text model; give a model, or its image tower alone")
    assert isinstance(built, DualEncoder), "its spec is one's"
    return built
