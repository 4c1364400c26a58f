"""Towers that stay as they are while the other one is trained."""

from __future__ import annotations

from typing import Literal

from torch import nn

from mobileclip.encoders import DualEncoder
from mobileclip.training.finetuning.batch_norm import freeze_batch_norm

Tower = Literal["image", "text"]


def freeze_tower(model: DualEncoder, tower: Tower) -> None:
    """Fix one tower of `model`: its weights get no gradient, and its batch norms keep their statistics.

    A frozen text tower keeps what prompts mean: the image tower is fitted to them, as in Zhai et al.'s locked tuning
    with the towers exchanged.

    Args:
        model: changed in place.
        tower: which.

    Raises:
        ValueError: if there is no such tower.
    """
    tower_of(model, tower).requires_grad_(requires_grad=False)
    freeze_batch_norm(tower_of(model, tower))


def tower_of(model: DualEncoder, tower: Tower) -> nn.Module:
    """Return the tower of that name.

    Raises:
        ValueError: if there is no such tower.
    """
    towers: dict[str, nn.Module] = {"image": model.image_encoder, "text": model.text_encoder}
    if tower not in towers:
        raise ValueError(f"there is no tower {tower!r}; a model has: {', '.join(towers)}")
    return towers[tower]
