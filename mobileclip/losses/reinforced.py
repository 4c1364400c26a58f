"""The loss of multi-modal reinforced training: contrastive and distillation terms, on real and synthetic captions."""

from __future__ import annotations

import attrs
from torch import distributed

from mobileclip.losses.specs import DistillingLossSpec, losses
from mobileclip.losses.tiled.loss import TiledLoss
from mobileclip.strict import strict


@losses.register("reinforced")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedLossSpec(DistillingLossSpec):
    """The choices of the reinforced loss.

    Examples:
        >>> ReinforcedLossSpec(distill_weight=0.75, contrastive_weight=0.25).term_names
        ('contrastive', 'distillation')
        >>> ReinforcedLossSpec().term_names
        (None, 'distillation')
    """

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ReinforcedLoss:
        """Return the loss."""
        return ReinforcedLoss(self, process_group=process_group)


class ReinforcedLoss(TiledLoss):
    """The loss of reinforced training.

    `contrastive_weight * L_CLIP + distill_weight * L_Distill`, summed over the batch with the real captions and, where
    given, the batch with the synthetic captions; the images are shared.

    Args:
        spec: its choices; by default those of S0, S1 and S2.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Source: Eq. 2 and 3.

    Differs: the distillation term is the divergence, zero where the student equals the ensemble; the release reports
    the cross-entropy, which has the same gradient. Over several processes, a text's targets are its distribution over
    all images; one path of the release takes the transpose of the images' targets, which is none.

    Examples:
        >>> loss = ReinforcedLoss(ReinforcedLossSpec(teacher_dims=(4,), teacher_logit_scales=(10.0,)))
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> terms = loss(image=image, text=text, logit_scale=10.0, teacher_image=image, teacher_text=text)
        >>> abs(terms.distillation.item()) < 1e-5  # the student agrees with its teacher
        True
    """

    def __init__(
        self, spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__(spec or ReinforcedLossSpec(), process_group=process_group)
