"""What describes a loss: the base class of every spec, the choices that losses share, and the registry of names."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
from attrs import validators
from torch import Tensor, distributed, nn

from mobileclip.registry import Registry
from mobileclip.serialization import open_family
from mobileclip.strict import strict

if TYPE_CHECKING:
    from collections.abc import Iterable


class LossTerms(NamedTuple):
    """The value of a loss: scalars that carry gradients.

    Args:
        contrastive: the contrastive term, already weighted; zero where the loss has none.
        distillation: the distillation term, already weighted; zero where the loss has none.
        total: their sum, the number to minimise.

    Examples:
        >>> terms = ContrastiveLoss()(image=torch.eye(4), text=torch.eye(4), logit_scale=0.0)
        >>> isinstance(terms, LossTerms), terms.total.item() == terms.contrastive.item(), terms.distillation
        (True, True, tensor(0.))
    """

    contrastive: Tensor
    distillation: Tensor
    total: Tensor


class LossSpec(abc.ABC):
    """Base class of every loss spec: a value that builds the loss it describes.

    Examples:
        >>> class CosineLossSpec(LossSpec):
        ...     needs_teachers = False
        ...     def build(self, *, process_group=None) -> nn.Module:
        ...         return nn.CosineEmbeddingLoss()
        >>> CosineLossSpec().term_names
        ('contrastive', None)
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def needs_teachers(self) -> bool:
        """Whether the loss wants teacher embeddings beside the student's."""

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """What a log calls the two terms of `LossTerms`; None for one that the loss has not."""
        return "contrastive", "distillation" if self.needs_teachers else None

    @abc.abstractmethod
    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.Module:
        """Return the loss.

        Its value is this process's share: the mean over the processes of the values, and of the gradients as
        `DistributedDataParallel` takes it, are those of the whole batch in one process. All processes call it together
        and scale what it returns alike; gradients are exchanged in the forward pass.

        Args:
            process_group: the processes that the batch is spread over, the same number of pairs to each; None where
                this process has the whole batch.
        """


losses: Registry[type[LossSpec]] = Registry("loss")
"""Losses by name; third parties add theirs here or by an entry point in `mobileclip.loss`."""
open_family(LossSpec, losses)


class PairLossSpec(LossSpec):
    """The choices of a loss over all pairs of a batch; as they stand, those of the student's contrastive loss alone.

    Examples:
        >>> spec: PairLossSpec = SigmoidLossSpec()
        >>> spec.contrastive_weight, spec.distill_weight, spec.initial_logit_bias
        (1.0, 0.0, -10.0)
    """

    __slots__ = ()

    @property
    def contrastive_weight(self) -> float:
        """Weight of the contrastive term; at least 0."""
        return 1.0

    @property
    def distill_weight(self) -> float:
        """Weight of the distillation term; at least 0. With 0, teachers are neither needed nor looked at."""
        return 0.0

    @property
    def teacher_dims(self) -> tuple[int, ...]:
        """Dims of the teachers, in the order in which their embeddings are concatenated."""
        return ()

    @property
    def teacher_logit_scales(self) -> tuple[float, ...]:
        """Inverse temperatures of the teachers, after `exp`."""
        return ()

    @property
    def teacher_biases(self) -> tuple[float | None, ...]:
        """Biases of the teachers, None for one that was trained with a softmax."""
        return (None,) * len(self.teacher_dims)

    @property
    def initial_logit_bias(self) -> float | None:
        """The student's bias before training; None for a softmax loss, which no bias would change."""
        return None

    @property
    def needs_teachers(self) -> bool:
        """Where it distils: the teachers' embeddings are its targets."""
        return self.distill_weight > 0

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """The terms of positive weight."""
        return "contrastive" if self.contrastive_weight > 0 else None, "distillation" if self.needs_teachers else None


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
class DistillingLossSpec(PairLossSpec):
    """The choices of every loss that distils an ensemble of teachers beside its contrastive term.

    The defaults are DataCompDR's teachers and the weights of S0, S1 and S2.

    Args:
        teacher_dims: embedding dims of the teachers, in the order in which their embeddings are concatenated.
        teacher_logit_scales: inverse temperatures of the teachers, after `exp`, in the same order; by default 100 each.
        distill_weight: `w` of Eq. 2, 0.75 for B and 1 for the smaller models; at least 0. With 0 there are no teachers.
        contrastive_weight: `1 - w` of Eq. 2; at least 0; by default 0, or 1 where nothing is distilled.

    Raises:
        ValueError: if the lengths differ, a number is out of its range, or both weights are zero.

    Examples:
        >>> spec: DistillingLossSpec = ReinforcedLossSpec(teacher_dims=(768, 512, 512))
        >>> spec.teacher_logit_scales
        (100.0, 100.0, 100.0)
        >>> ReinforcedLossSpec(distill_weight=0).contrastive_weight
        1.0
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
