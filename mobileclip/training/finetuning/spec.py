"""How a pretrained model is made ready to be trained further, and an ordinary model again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import attrs
from attrs import validators
from torch import nn

from mobileclip.encoders import DualEncoder
from mobileclip.strict import strict
from mobileclip.training.adapters import merge_lora
from mobileclip.training.finetuning.batch_norm import freeze_batch_norm, ordinary_batch_norm, synchronise_batch_norm
from mobileclip.training.finetuning.lora import LoraSpec, add_lora

BatchNormMode = Literal["frozen", "synchronised", "trained"]
Tower = Literal["image", "text"]


def _as_towers(values: Iterable[Tower]) -> tuple[Tower, ...]:
    return tuple(values)


def _towers(_: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if len(set(value)) < len(value):
        raise ValueError(f"{attribute.name} names each tower at most once, got {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class FinetuningSpec:
    """The settings of fine-tuning: frozen towers, batch norms, and low-rank adapters.

    Args:
        batch_norm: `frozen` keeps statistics, scales and shifts as they are, which small batches need; `synchronised`
            takes statistics over the batches of all processes; `trained` over each process's own, for large batches.
        frozen_towers: towers that stay as they are, `image` or `text`.
        lora: adapters to train in place of the weights; none trains the weights.

    Raises:
        ValueError: if a tower is unknown, or both are frozen and nothing but the logit scale is left to train.

    Examples:
        >>> from mobileclip.encoders import DualEncoder, MCtSpec, ViTSpec
        >>> image, text = ViTSpec(width=16, depth=1, num_heads=2), MCtSpec(width=16, depth=0, num_heads=2)
        >>> model = DualEncoder(image.build(), text.build())
        >>> FinetuningSpec(frozen_towers=("text",)).prepare(model)
        >>> any(parameter.requires_grad for parameter in model.text_encoder.parameters())
        False
    """

    batch_norm: BatchNormMode = attrs.field(default="frozen", validator=validators.in_(get_args(BatchNormMode)))
    frozen_towers: tuple[Tower, ...] = attrs.field(default=(), converter=_as_towers, validator=_towers)
    lora: LoraSpec | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.frozen_towers) == len(get_args(Tower)):
            raise ValueError("with both towers frozen there is nothing to train but the logit scale; freeze one")

    def prepare(self, model: DualEncoder) -> None:
        """Make `model` ready for `mobileclip.training.train`, in place; adapters are drawn from torch's random numbers.

        Raises:
            ValueError: if batch norms cannot be synchronised here, or the adapters do not fit the model.
            ModuleNotFoundError: if the adapters need what is not installed.
        """
        for tower in self.frozen_towers:
            freeze_tower(model, tower)
        if self.batch_norm == "frozen":
            freeze_batch_norm(model)
        elif self.batch_norm == "synchronised":
            synchronise_batch_norm(model)
        if self.lora is not None:
            add_lora(model, self.lora)

    def finish(self, model: DualEncoder) -> None:
        """Make what was trained an ordinary model again, in place: adapters merged, plain batch norms, none frozen."""
        merge_lora(model)
        ordinary_batch_norm(model)
        model.eval().requires_grad_(requires_grad=True)


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
    towers: dict[str, nn.Module] = {"image": model.image_encoder, "text": model.text_encoder}
    if tower not in towers:
        raise ValueError(f"there is no tower {tower!r}; a model has: {', '.join(towers)}")
    freeze_batch_norm(towers[tower].requires_grad_(requires_grad=False))
