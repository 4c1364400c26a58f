"""The choices of every loss that distils an ensemble of teachers beside its contrastive term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import validators

from mobileclip.losses.specs import LossSpec
from mobileclip.strict import strict

if TYPE_CHECKING:
    from collections.abc import Iterable


def _ints(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _positive(_: object, attribute: attrs.Attribute[Any], values: tuple[float, ...]) -> None:
    if not values:
        raise ValueError(f"{attribute.name} is empty; give one number per teacher")
    for value in values:
        if not value > 0:
            raise ValueError(f"{attribute.name} must be positive, but {values} holds {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class DistillingLossSpec(LossSpec):
    """Teachers and weights; the defaults are DataCompDR's teachers and the weights of S0, S1 and S2.

    Args:
        teacher_dims: embedding dims of the teachers, in the order in which their embeddings are concatenated.
        teacher_logit_scales: inverse temperatures of the teachers, after `exp`, in the same order; by default 100 each.
        distill_weight: `w` of Eq. 2, 0.75 for B and 1 for the smaller models; at least 0. With 0 there are no teachers.
        contrastive_weight: `1 - w` of Eq. 2; at least 0; by default 0, or 1 where nothing is distilled.

    Raises:
        ValueError: if the lengths differ, a number is out of its range, or both weights are zero.
    """

    teacher_dims: tuple[int, ...] = attrs.field(default=(768, 768), converter=_ints, validator=_positive)
    teacher_logit_scales: tuple[float, ...] = attrs.field(
        default=attrs.Factory(lambda own: (100.0,) * len(own.teacher_dims), takes_self=True),
        converter=_floats,
        validator=_positive,
    )
    distill_weight: float = attrs.field(default=1.0, validator=validators.ge(0))
    contrastive_weight: float = attrs.field(
        default=attrs.Factory(lambda own: 0.0 if own.distill_weight else 1.0, takes_self=True),
        validator=validators.ge(0),
    )

    def __attrs_post_init__(self) -> None:
        if len(self.teacher_dims) != len(self.teacher_logit_scales):
            raise ValueError(
                f"teacher_dims {self.teacher_dims} names {len(self.teacher_dims)} teachers and teacher_logit_scales "
                f"{self.teacher_logit_scales} names {len(self.teacher_logit_scales)}; give one logit scale per teacher"
            )
        if self.contrastive_weight == 0 and self.distill_weight == 0:
            raise ValueError("contrastive_weight and distill_weight are both 0, so there is nothing to minimise")

    @property
    def needs_teachers(self) -> bool:
        """Where it distils: the teachers' embeddings are its targets."""
        return self.distill_weight > 0

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """The terms of positive weight."""
        return "contrastive" if self.contrastive_weight > 0 else None, "distillation" if self.needs_teachers else None

    @property
    def used_dims(self) -> tuple[int, ...]:
        """Dims of the teachers that the loss looks at: none where it does not distil."""
        return self.teacher_dims if self.needs_teachers else ()
