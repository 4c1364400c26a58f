"""The sigmoid loss of SigLIP, in which every pair is a question of its own, and its distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from torch import distributed

from mobileclip.losses.specs import DistillingLossSpec, PairLossSpec, losses
from mobileclip.losses.tiled.loss import TiledLoss
from mobileclip.strict import strict

if TYPE_CHECKING:
    from collections.abc import Iterable

INITIAL_LOGIT_BIAS = -10.0


@losses.register("sigmoid")
@attrs.frozen(kw_only=True, field_transformer=strict)
class SigmoidLossSpec(PairLossSpec):
    """The sigmoid loss.

    Args:
        initial_logit_bias: the bias of all logits before training; -10 lets it start where almost no pair matches.

    Examples:
        >>> SigmoidLossSpec(initial_logit_bias=-5).build().logit_bias.item()
        -5.0
    """

    initial_logit_bias: float = attrs.field(default=INITIAL_LOGIT_BIAS, converter=float)

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> SigmoidLoss:
        """Return the loss."""
        return SigmoidLoss(self, process_group=process_group)


class SigmoidLoss(TiledLoss):
    """The sigmoid loss, summed over the real and, where given, the synthetic captions of the same images.

    `sum_ij -log sigmoid(z_ij * (logit_scale * image_i @ text_j + logit_bias)) / B`, with `z_ij` 1 for the pairs that
    belong together and -1 for all others. The bias is a parameter of the loss: it belongs into the optimiser, without
    weight decay, and into checkpoints. Its gradient is the mean over the processes already.

    Args:
        spec: its choices.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; it starts with a logit scale of 10.

    Examples:
        >>> loss = SigmoidLoss()(image=torch.eye(4), text=torch.eye(4), logit_scale=10.0)
        >>> round(loss.total.item(), 4)  # 10 * 1 - 10 for a match: log(2); 10 * 0 - 10 for three others: close to 0
        0.6933
    """

    def __init__(
        self, spec: SigmoidLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__(spec or SigmoidLossSpec(), process_group=process_group)


def _biases(values: Iterable[float | None] | None) -> tuple[float | None, ...] | None:
    return None if values is None else tuple(None if value is None else float(value) for value in values)


@losses.register("reinforced_sigmoid")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedSigmoidLossSpec(DistillingLossSpec):
    """The choices of the sigmoid loss with teachers.

    Args:
        teacher_logit_biases: the biases of teachers that were trained with a sigmoid loss, and None for those that
            were trained with a softmax, in the order of the dims; None alone if all were.
        initial_logit_bias: the student's bias before training.

    Raises:
        ValueError: if the lengths differ, a number is out of its range, or both weights are zero.

    Examples:
        >>> ReinforcedSigmoidLossSpec(teacher_logit_biases=(-10, None)).teacher_biases  # SigLIP's teacher, then CLIP's
        (-10.0, None)
    """

    teacher_logit_biases: tuple[float | None, ...] | None = attrs.field(default=None, converter=_biases)
    initial_logit_bias: float = attrs.field(default=INITIAL_LOGIT_BIAS, converter=float)

    @teacher_logit_biases.validator
    def _check_biases(self, attribute: attrs.Attribute[Any], values: tuple[float | None, ...] | None) -> None:
        if values is None:
            return
        if len(values) != len(self.teacher_dims):
            raise ValueError(
                f"teacher_dims {self.teacher_dims} names {len(self.teacher_dims)} teachers and {attribute.name} "
                f"{values} names {len(values)}; give one per teacher, None for one that was trained with a softmax"
            )

    @property
    def teacher_biases(self) -> tuple[float | None, ...]:
        """One entry per teacher."""
        return self.teacher_logit_biases or (None,) * len(self.teacher_dims)

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ReinforcedSigmoidLoss:
        """Return the loss."""
        return ReinforcedSigmoidLoss(self, process_group=process_group)


class ReinforcedSigmoidLoss(TiledLoss):
    """The sigmoid loss of reinforced training.

    `contrastive_weight * L_Sigmoid + distill_weight * L_Distill`, summed over real and, where given, synthetic
    captions. The second term asks of every pair how far the student's probability that it matches is from the mean of
    the teachers': `sum_ij KL(Bernoulli(mean_k p^k_ij) || Bernoulli(sigmoid(logits_ij))) / B`.

    A teacher with a bias says `p_ij = sigmoid(scale * image_i @ text_j + bias)`. A teacher that was trained with a
    softmax has no bias, and its bare sigmoid would call nearly every pair a match: its logits mean something only
    against each other. Its `p_ij` is what it says of the batch, the mean of its two softmaxes, images over texts and
    texts over images; that is a sigmoid whose bias is minus the log-sum-exp of the other candidates' logits. As with
    labels, one match per image is expected. The bias is a parameter, as in `SigmoidLoss`.

    Args:
        spec: its choices.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Examples:
        >>> spec = ReinforcedSigmoidLossSpec(teacher_dims=(4,), teacher_logit_scales=(10,), teacher_logit_biases=(-10,))
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> teachers = {"teacher_image": image, "teacher_text": text}
        >>> terms = ReinforcedSigmoidLoss(spec)(image=image, text=text, logit_scale=10.0, **teachers)
        >>> abs(terms.distillation.item()) < 1e-5  # the student agrees with its teacher
        True
    """

    def __init__(
        self, spec: ReinforcedSigmoidLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__(spec or ReinforcedSigmoidLossSpec(), process_group=process_group)
