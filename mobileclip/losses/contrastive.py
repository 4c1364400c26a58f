"""The contrastive loss of CLIP: every image finds its text among the batch's, and every text its image."""

from __future__ import annotations

from functools import partial

import attrs
from torch import Tensor, distributed, nn

from mobileclip.losses.specs import LossSpec, LossTerms, losses
from mobileclip.losses.tiled.batch import EmbeddingBatch
from mobileclip.losses.tiled.combining import sum_over_captions
from mobileclip.losses.tiled.processes import Processes
from mobileclip.losses.tiled.softmax import softmax_terms


@losses.register("contrastive")
@attrs.frozen(kw_only=True)
class ContrastiveLossSpec(LossSpec):
    """The contrastive loss; it has no choices."""

    @property
    def needs_teachers(self) -> bool:
        """No: it compares the student's own embeddings."""
        return False

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ContrastiveLoss:
        """Return the loss."""
        return ContrastiveLoss(process_group=process_group)


class ContrastiveLoss(nn.Module):
    """The contrastive loss, summed over the real and, where given, the synthetic captions of the same images.

    `(CE(logits, i) + CE(logits.T, i)) / 2` with `logits = logit_scale * image @ text.T`, each the mean over its rows.
    Exact at any batch; memory grows with the batch, not with its square.

    Shape: image, text, syn_text (B, D) -> scalars.

    Args:
        process_group: the processes that the batch is spread over; see `LossSpec.build`.

    Source: the first term of Eq. 2.
    """

    def __init__(self, *, process_group: distributed.ProcessGroup | None = None) -> None:
        super().__init__()
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
            partial(softmax_terms, contrastive=True),
            processes=self.processes,
            contrastive_weight=1.0,
            distill_weight=0.0,
        )
        return attrs.evolve(terms, total=terms.contrastive)
