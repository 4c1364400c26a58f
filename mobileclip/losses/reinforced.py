"""The loss of multi-modal reinforced training: contrastive and distillation terms, on real and synthetic captions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
from torch import Tensor, distributed, nn

from mobileclip.losses.distilling import DistillingLossSpec
from mobileclip.losses.specs import LossTerms, losses
from mobileclip.losses.tiled.batch import EmbeddingBatch
from mobileclip.losses.tiled.combining import sum_over_captions
from mobileclip.losses.tiled.processes import Processes
from mobileclip.losses.tiled.softmax import softmax_terms
from mobileclip.strict import strict

if TYPE_CHECKING:
    from collections.abc import Sequence


@losses.register("reinforced")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedLossSpec(DistillingLossSpec):
    """The choices of the reinforced loss."""

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ReinforcedLoss:
        """Return the loss."""
        return ReinforcedLoss(
            teacher_dims=self.teacher_dims,
            teacher_logit_scales=self.teacher_logit_scales,
            contrastive_weight=self.contrastive_weight,
            distill_weight=self.distill_weight,
            process_group=process_group,
        )


class ReinforcedLoss(nn.Module):
    """The loss of reinforced training.

    `contrastive_weight * L_CLIP + distill_weight * L_Distill`, summed over the batch with the real captions and, where
    given, the batch with the synthetic captions; the images are shared. Similarities and softmaxes are computed in
    float32, or float64 where the student's embeddings have it. Exact at any batch; memory grows with the batch, not
    with its square.

    Shape: image, text, syn_text (B, D); teacher_image, teacher_text, teacher_syn_text (B, sum of teacher_dims) ->
    scalars.

    Args:
        teacher_dims: embedding dims of the teachers, in the order in which their embeddings are concatenated.
        teacher_logit_scales: inverse temperatures of the teachers, after `exp`, in the same order.
        contrastive_weight: weight of the contrastive term; at least 0.
        distill_weight: weight of the distillation term; at least 0. With 0, teachers are neither needed nor looked at.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Raises:
        ValueError: what `ReinforcedLossSpec` raises.

    Source: Eq. 2 and 3.

    Differs: the distillation term is the divergence, zero where the student equals the ensemble; the release reports
    the cross-entropy, which has the same gradient. Over several processes, a text's targets are its distribution over
    all images; one path of the release takes the transpose of the images' targets, which is none.
    """

    def __init__(
        self,
        *,
        teacher_dims: Sequence[int] = (768, 768),
        teacher_logit_scales: Sequence[float] = (100.0, 100.0),
        contrastive_weight: float = 0.0,
        distill_weight: float = 1.0,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.spec = ReinforcedLossSpec(
            teacher_dims=teacher_dims,
            teacher_logit_scales=teacher_logit_scales,
            contrastive_weight=contrastive_weight,
            distill_weight=distill_weight,
        )
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
        return sum_over_captions(
            batch,
            partial(softmax_terms, contrastive=self.spec.contrastive_weight > 0),
            processes=self.processes,
            contrastive_weight=self.spec.contrastive_weight,
            distill_weight=self.spec.distill_weight,
            teacher_logit_scales=self.spec.teacher_logit_scales,
        )

    def extra_repr(self) -> str:
        """Return the choices as `print` shows them."""
        return ", ".join(f"{name}={value}" for name, value in attrs.asdict(self.spec, recurse=False).items())
