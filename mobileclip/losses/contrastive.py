"""The contrastive loss of CLIP: every image finds its text among the batch's, and every text its image."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.losses.base import LossSpec, LossTerms, check_pair, losses, similarity_logits


def contrastive_loss(logits: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of the matching pairs on the diagonal.

    `(CE(logits, i) + CE(logits.T, i)) / 2`, each the mean over its rows.

    Shape: logits (B, B), images as rows -> ().
    """
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.mT, labels)) / 2


@losses.register("contrastive")
@attrs.frozen(kw_only=True)
class ContrastiveLossSpec(LossSpec):
    """The contrastive loss; it has no choices."""

    @property
    def needs_teachers(self) -> bool:
        """No: it compares the student's own embeddings."""
        return False

    def build(self) -> ContrastiveLoss:
        """Return the loss."""
        return ContrastiveLoss()


class ContrastiveLoss(nn.Module):
    """The contrastive loss, summed over the real and, where given, the synthetic captions of the same images.

    Shape: image, text, syn_text (B, D) -> scalars.

    Source: the first term of Eq. 2.
    """

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
        check_pair(image, text, ("image", "text"))
        contrastive = contrastive_loss(similarity_logits(image, text, logit_scale))
        if syn_text is not None:
            check_pair(image, syn_text, ("image", "syn_text"))
            contrastive = contrastive + contrastive_loss(similarity_logits(image, syn_text, logit_scale))
        return LossTerms(contrastive=contrastive, distillation=torch.zeros_like(contrastive), total=contrastive)
