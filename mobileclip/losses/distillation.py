"""Distillation of an ensemble's similarities: the student's softmaxes learn the mean of the teachers'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from mobileclip.losses.specs import similarity_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@torch.no_grad()
def teacher_targets(
    image: Tensor, text: Tensor, *, teacher_dims: Sequence[int], teacher_logit_scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the ensemble's two distributions, images over texts and texts over images.

    `1/K sum_k softmax(scale_k * image_k @ text_k.T)`, and the same with image and text exchanged. Each teacher's
    embeddings are brought to unit length first: they are stored rounded, and a scale of 100 makes that count.

    Shape: image, text (B, sum of dims) -> (B, B) with images as rows, (B, B) with texts as rows; a row sums to one.

    Args:
        image: the teachers' image embeddings, concatenated.
        text: the teachers' text embeddings, concatenated in the same order.
        teacher_dims: the dims of the teachers, in that order.
        teacher_logit_scales: the inverse temperatures of the teachers, after `exp`.

    Differs: one path of the release takes the first's transpose for the second; the rows of that do not sum to one.
    """
    over_texts: Tensor | None = None
    over_images: Tensor | None = None
    images = torch.split(image, list(teacher_dims), dim=1)
    texts = torch.split(text, list(teacher_dims), dim=1)
    for image_k, text_k, scale in zip(images, texts, teacher_logit_scales, strict=True):
        dtype = torch.promote_types(image_k.dtype, torch.float32)
        unit_image, unit_text = F.normalize(image_k.to(dtype), dim=1), F.normalize(text_k.to(dtype), dim=1)
        logits = similarity_logits(unit_image, unit_text, scale)
        row, column = logits.softmax(dim=1), logits.mT.softmax(dim=1)
        over_texts = row if over_texts is None else over_texts.add_(row)
        over_images = column if over_images is None else over_images.add_(column)
    assert over_texts is not None, "a loss has at least one teacher"
    assert over_images is not None, "both directions are summed together"
    num_teachers = len(teacher_dims)
    return over_texts.div_(num_teachers), over_images.div_(num_teachers)


def distillation_loss(logits: Tensor, over_texts: Tensor, over_images: Tensor) -> Tensor:
    """Return the divergence of the student's softmaxes from the teachers', the mean of both directions.

    `(KL(over_texts || softmax(logits)) + KL(over_images || softmax(logits.T))) / 2`, each the mean over its rows.

    Shape: logits (B, B) with images as rows, over_texts (B, B), over_images (B, B) with texts as rows -> ().

    Source: Eq. 3.

    Differs: the release reports the cross-entropy, larger by the targets' entropy; the gradient is the same.
    """
    image_to_text = F.kl_div(logits.log_softmax(dim=1), over_texts, reduction="batchmean")
    text_to_image = F.kl_div(logits.mT.log_softmax(dim=1), over_images, reduction="batchmean")
    return (image_to_text + text_to_image) / 2
