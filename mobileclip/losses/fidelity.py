"""What rounding the teachers' embeddings does to the targets of distillation."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.devices import in_float64
from mobileclip.losses.specs import check_pair, similarity_logits


@attrs.frozen(kw_only=True)
class TargetDivergence:
    """Divergence of the stored targets from the exact ones, in nats: a mean over the batch for every teacher.

    Args:
        image_to_text: of the images' distributions over the texts.
        text_to_image: of the texts' distributions over the images.
    """

    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the teachers and both directions."""
        values = self.image_to_text + self.text_to_image
        return sum(values) / len(values)


@torch.no_grad()
def distillation_target_kl(
    stored_image: Tensor,
    stored_text: Tensor,
    *,
    exact_image: Tensor,
    exact_text: Tensor,
    teacher_dims: Sequence[int],
    teacher_logit_scales: Sequence[float],
) -> TargetDivergence:
    """Return how far each teacher's softmaxes move when its embeddings are replaced with stored ones.

    `KL(softmax(scale * exact_image @ exact_text.T) || softmax(scale * stored_image @ stored_text.T))`, and the same
    with image and text exchanged, each the mean over its rows. As in the loss, embeddings are brought to unit length
    first. Computed in float64, so that the rounding of the computation stays below what is measured.

    Shape: all (B, sum of dims) -> per teacher.

    Args:
        stored_image: the teachers' image embeddings as they were read, concatenated.
        stored_text: the teachers' text embeddings as they were read, row by row the images' partners.
        exact_image: the image embeddings as the teachers gave them.
        exact_text: the text embeddings as the teachers gave them.
        teacher_dims: the dims of the teachers, in the order in which they are concatenated.
        teacher_logit_scales: the inverse temperatures of the teachers, after `exp`.

    Raises:
        ValueError: if the batches disagree with each other or with the dims.

    Source: the targets of Eq. 3.
    """
    check_pair(stored_image, stored_text, ("stored_image", "stored_text"))
    check_pair(exact_image, exact_text, ("exact_image", "exact_text"))
    check_pair(stored_image, exact_image, ("stored_image", "exact_image"))
    if sum(teacher_dims) != stored_image.shape[1] or len(teacher_dims) != len(teacher_logit_scales):
        raise ValueError(
            f"teacher_dims {tuple(teacher_dims)} must sum to the embeddings' dim {stored_image.shape[1]}, with one of "
            f"teacher_logit_scales {tuple(teacher_logit_scales)} for each"
        )
    stored_logits = _logits(stored_image, stored_text, teacher_dims, teacher_logit_scales)
    exact_logits = _logits(exact_image, exact_text, teacher_dims, teacher_logit_scales)
    pairs = list(zip(stored_logits, exact_logits, strict=True))
    return TargetDivergence(
        image_to_text=tuple(_divergence(stored, exact) for stored, exact in pairs),
        text_to_image=tuple(_divergence(stored.mT, exact.mT) for stored, exact in pairs),
    )


def _logits(image: Tensor, text: Tensor, dims: Sequence[int], scales: Sequence[float]) -> list[Tensor]:
    images = torch.split(in_float64(image), list(dims), dim=1)
    texts = torch.split(in_float64(text), list(dims), dim=1)
    return [
        similarity_logits(F.normalize(image_k, dim=1), F.normalize(text_k, dim=1), scale)
        for image_k, text_k, scale in zip(images, texts, scales, strict=True)
    ]


def _divergence(stored: Tensor, exact: Tensor) -> float:
    target = exact.log_softmax(dim=1)
    return float(F.kl_div(stored.log_softmax(dim=1), target, reduction="batchmean", log_target=True))
