"""The contrastive loss of CLIP: every image finds its text among the batch's, and every text its image."""

from __future__ import annotations

import attrs
from torch import distributed

from mobileclip.losses.specs import PairLossSpec, losses
from mobileclip.losses.tiled.loss import TiledLoss


@losses.register("contrastive")
@attrs.frozen(kw_only=True)
class ContrastiveLossSpec(PairLossSpec):
    """The contrastive loss; it has no choices.

    Examples:
        >>> ContrastiveLossSpec().build().spec.needs_teachers
        False
    """

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ContrastiveLoss:
        """Return the loss."""
        return ContrastiveLoss(self, process_group=process_group)


class ContrastiveLoss(TiledLoss):
    """The contrastive loss, summed over the real and, where given, the synthetic captions of the same images.

    `(CE(logits, i) + CE(logits.T, i)) / 2` with `logits = logit_scale * image @ text.T`, each the mean over its rows.

    Args:
        spec: it has no choices.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Source: the first term of Eq. 2.

    Examples:
        >>> alike = torch.full((8, 4), 0.5)
        >>> ContrastiveLoss()(image=alike, text=alike, logit_scale=10.0).total  # nothing tells the 8 apart: log(8)
        tensor(2.0794)
    """

    def __init__(
        self, spec: ContrastiveLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__(spec or ContrastiveLossSpec(), process_group=process_group)
