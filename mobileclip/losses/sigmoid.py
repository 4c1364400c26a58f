"""The sigmoid loss of SigLIP, in which every pair is a question of its own, and its distillation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, distributed, nn

from mobileclip.losses.distilling import DistillingLossSpec
from mobileclip.losses.specs import LossSpec, LossTerms, losses
from mobileclip.losses.tiled.batch import EmbeddingBatch
from mobileclip.losses.tiled.combining import sum_over_captions
from mobileclip.losses.tiled.processes import Processes
from mobileclip.losses.tiled.sigmoid import sigmoid_terms
from mobileclip.strict import strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INITIAL_LOGIT_BIAS = -10.0


def _biases(values: Iterable[float | None] | None) -> tuple[float | None, ...] | None:
    return None if values is None else tuple(None if value is None else float(value) for value in values)


@losses.register("sigmoid")
@attrs.frozen(kw_only=True, field_transformer=strict)
class SigmoidLossSpec(LossSpec):
    """The sigmoid loss.

    Args:
        initial_logit_bias: the bias of all logits before training; -10 lets it start where almost no pair matches.
    """

    initial_logit_bias: float = attrs.field(default=INITIAL_LOGIT_BIAS, converter=float)

    @property
    def needs_teachers(self) -> bool:
        """No: it compares the student's own embeddings."""
        return False

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> SigmoidLoss:
        """Return the loss."""
        return SigmoidLoss(initial_logit_bias=self.initial_logit_bias, process_group=process_group)


class SigmoidLoss(nn.Module):
    """The sigmoid loss, summed over the real and, where given, the synthetic captions of the same images.

    `sum_ij -log sigmoid(z_ij * (logit_scale * image_i @ text_j + logit_bias)) / B`, with `z_ij` 1 for the pairs that
    belong together and -1 for all others. The bias is a parameter of the loss: it belongs into the optimiser, without
    weight decay, and into checkpoints. Its gradient is the mean over the processes already.

    Shape: image, text, syn_text (B, D) -> scalars.

    Args:
        initial_logit_bias: the bias before training.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; it starts with a logit scale of 10.
    """

    def __init__(
        self,
        *,
        initial_logit_bias: float = INITIAL_LOGIT_BIAS,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.spec = SigmoidLossSpec(initial_logit_bias=initial_logit_bias)
        self.logit_bias = nn.Parameter(torch.tensor(self.spec.initial_logit_bias))
        self.processes = Processes(process_group)

    def forward(
        self, *, image: Tensor, text: Tensor, logit_scale: Tensor | float, syn_text: Tensor | None = None
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            image: unit-length image embeddings.
            text: unit-length embeddings of the real captions.
            logit_scale: the student's inverse temperature, after `exp`.
            syn_text: unit-length embeddings of the synthetic captions.

        Raises:
            ValueError: if batches or dims disagree.
        """
        terms = sum_over_captions(
            EmbeddingBatch(image=image, text=text, logit_scale=logit_scale, syn_text=syn_text),
            partial(sigmoid_terms, bias=self.logit_bias.detach(), teacher_biases=(), contrastive=True),
            processes=self.processes,
            contrastive_weight=1.0,
            distill_weight=0.0,
            parameters=(self.logit_bias,),
        )
        return attrs.evolve(terms, total=terms.contrastive)


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
    def biases(self) -> tuple[float | None, ...]:
        """One entry per teacher."""
        return self.teacher_logit_biases or (None,) * len(self.teacher_dims)

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ReinforcedSigmoidLoss:
        """Return the loss."""
        return ReinforcedSigmoidLoss(
            teacher_dims=self.teacher_dims,
            teacher_logit_scales=self.teacher_logit_scales,
            teacher_logit_biases=self.teacher_logit_biases,
            contrastive_weight=self.contrastive_weight,
            distill_weight=self.distill_weight,
            initial_logit_bias=self.initial_logit_bias,
            process_group=process_group,
        )


class ReinforcedSigmoidLoss(nn.Module):
    """The sigmoid loss of reinforced training.

    `contrastive_weight * L_Sigmoid + distill_weight * L_Distill`, summed over real and, where given, synthetic
    captions. The second term asks of every pair how far the student's probability that it matches is from the mean of
    the teachers': `sum_ij KL(Bernoulli(mean_k p^k_ij) || Bernoulli(sigmoid(logits_ij))) / B`.

    A teacher with a bias says `p_ij = sigmoid(scale * image_i @ text_j + bias)`. A teacher that was trained with a
    softmax has no bias, and its bare sigmoid would call nearly every pair a match: its logits mean something only
    against each other. Its `p_ij` is what it says of the batch, the mean of its two softmaxes, images over texts and
    texts over images; that is a sigmoid whose bias is minus the log-sum-exp of the other candidates' logits. As with
    labels, one match per image is expected.

    Shape: image, text, syn_text (B, D); teacher_image, teacher_text, teacher_syn_text (B, sum of teacher_dims) ->
    scalars.

    Args:
        teacher_dims: embedding dims of the teachers, in the order in which their embeddings are concatenated.
        teacher_logit_scales: inverse temperatures of the teachers, after `exp`, in the same order.
        teacher_logit_biases: biases of the teachers, None for one that was trained with a softmax; None if all were.
        contrastive_weight: weight of the sigmoid loss; at least 0.
        distill_weight: weight of the distillation; at least 0. With 0, teachers are neither needed nor looked at.
        initial_logit_bias: the student's bias before training; `logit_bias` is a parameter, as in `SigmoidLoss`.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Raises:
        ValueError: what `ReinforcedSigmoidLossSpec` raises.
    """

    def __init__(
        self,
        *,
        teacher_dims: Sequence[int] = (768, 768),
        teacher_logit_scales: Sequence[float] = (100.0, 100.0),
        teacher_logit_biases: Sequence[float | None] | None = None,
        contrastive_weight: float = 0.0,
        distill_weight: float = 1.0,
        initial_logit_bias: float = INITIAL_LOGIT_BIAS,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.spec = ReinforcedSigmoidLossSpec(
            teacher_dims=teacher_dims,
            teacher_logit_scales=teacher_logit_scales,
            teacher_logit_biases=teacher_logit_biases,
            contrastive_weight=contrastive_weight,
            distill_weight=distill_weight,
            initial_logit_bias=initial_logit_bias,
        )
        self.logit_bias = nn.Parameter(torch.tensor(self.spec.initial_logit_bias))
        self.processes = Processes(process_group)

    def forward(
        self,
        *,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        teacher_image: Tensor | None = None,
        teacher_text: Tensor | None = None,
        syn_text: Tensor | None = None,
        teacher_syn_text: Tensor | None = None,
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            image: the student's unit-length image embeddings.
            text: the student's unit-length embeddings of the real captions.
            logit_scale: the student's inverse temperature, after `exp`.
            teacher_image: the teachers' embeddings of the same augmented images, concatenated.
            teacher_text: the teachers' embeddings of the real captions, concatenated.
            syn_text: the student's unit-length embeddings of the synthetic captions.
            teacher_syn_text: the teachers' embeddings of the synthetic captions, concatenated.

        Raises:
            ValueError: if batches or dims disagree, teachers are missing, or only one of `syn_text` and
                `teacher_syn_text` is given.
        """
        batch = EmbeddingBatch(
            image=image,
            text=text,
            logit_scale=logit_scale,
            syn_text=syn_text,
            teacher_image=teacher_image,
            teacher_text=teacher_text,
            teacher_syn_text=teacher_syn_text,
            teacher_dims=self.spec.used_dims,
        )
        evaluate = partial(
            sigmoid_terms,
            bias=self.logit_bias.detach(),
            teacher_biases=self.spec.biases,
            contrastive=self.spec.contrastive_weight > 0,
        )
        return sum_over_captions(
            batch,
            evaluate,
            processes=self.processes,
            contrastive_weight=self.spec.contrastive_weight,
            distill_weight=self.spec.distill_weight,
            teacher_logit_scales=self.spec.teacher_logit_scales,
            parameters=(self.logit_bias,),
        )

    def extra_repr(self) -> str:
        """Return the choices as `print` shows them."""
        return ", ".join(f"{name}={value}" for name, value in attrs.asdict(self.spec, recurse=False).items())
