"""Names for values of `ReinforcedLossSpec` and for the loss with them: CLIP's loss, SigLIP's, and its distillation."""

from __future__ import annotations

from functools import partial

from torch import distributed

from mobileclip.losses.reinforced import ReinforcedLoss, ReinforcedLossSpec
from mobileclip.losses.specs import losses

ContrastiveLossSpec = partial(ReinforcedLossSpec, teacher_dims=(), distill_weight=0.0)
"""The contrastive loss of CLIP: every image finds its text among the batch's, and every text its image."""
SigmoidLossSpec = partial(ReinforcedLossSpec, teacher_dims=(), distill_weight=0.0, initial_logit_bias=-10.0)
"""The sigmoid loss of SigLIP, which starts where almost no pair matches."""
ReinforcedSigmoidLossSpec = partial(ReinforcedLossSpec, initial_logit_bias=-10.0)
"""The divergence of SigLIP's probabilities from the teachers'."""
losses.add("contrastive", ContrastiveLossSpec)
losses.add("sigmoid", SigmoidLossSpec)
losses.add("reinforced_sigmoid", ReinforcedSigmoidLossSpec)


def ContrastiveLoss(  # noqa: N802
    spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
) -> ReinforcedLoss:
    """Return the contrastive loss; see `ReinforcedLoss`.

    Examples:
        >>> alike = torch.full((8, 4), 0.5)
        >>> ContrastiveLoss()(image=alike, text=alike, logit_scale=10.0).total  # nothing tells the 8 apart: log(8)
        tensor(2.0794)
    """
    return ReinforcedLoss(spec or ContrastiveLossSpec(), process_group=process_group)


def SigmoidLoss(  # noqa: N802
    spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
) -> ReinforcedLoss:
    """Return the sigmoid loss of SigLIP; see `ReinforcedLoss`.

    Examples:
        >>> loss = SigmoidLoss()(image=torch.eye(4), text=torch.eye(4), logit_scale=10.0)
        >>> round(loss.total.item(), 4)  # 10 * 1 - 10 for a match: log(2); 10 * 0 - 10 for three others: close to 0
        0.6933
    """
    return ReinforcedLoss(spec or SigmoidLossSpec(), process_group=process_group)


def ReinforcedSigmoidLoss(  # noqa: N802
    spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
) -> ReinforcedLoss:
    """Return SigLIP's loss with teachers; see `ReinforcedLoss`.

    Examples:
        >>> spec = ReinforcedSigmoidLossSpec(teacher_dims=(4,), teacher_logit_scales=(10,), teacher_logit_biases=(-10,))
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> teachers = {"teacher_image": image, "teacher_text": text}
        >>> terms = ReinforcedSigmoidLoss(spec)(image=image, text=text, logit_scale=10.0, **teachers)
        >>> abs(terms.distillation.item()) < 1e-5  # the student agrees with its teacher
        True
    """
    return ReinforcedLoss(spec or ReinforcedSigmoidLossSpec(), process_group=process_group)
