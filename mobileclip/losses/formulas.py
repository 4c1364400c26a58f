"""The losses as their formulas read, with every matrix held: what the others are checked and measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from mobileclip.losses.contrastive import ContrastiveLossSpec
from mobileclip.losses.distillation import distillation_loss, teacher_targets
from mobileclip.losses.reinforced import ReinforcedLossSpec
from mobileclip.losses.sigmoid import ReinforcedSigmoidLossSpec, SigmoidLossSpec
from mobileclip.losses.specs import LossSpec, LossTerms, similarity_logits

if TYPE_CHECKING:
    from torch import Tensor


def contrastive_loss(logits: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of the matching pairs on the diagonal.

    `(CE(logits, i) + CE(logits.T, i)) / 2`, each the mean over its rows.

    Shape: logits (B, B), images as rows -> ().
    """
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.mT, labels)) / 2


def sigmoid_loss(logits: Tensor) -> Tensor:
    """Return the sum over pairs of `-log sigmoid(z * logits)`, over the batch; `z` is 1 on the diagonal, else -1.

    Shape: logits (B, B) with the bias added -> ().
    """
    signs = 2 * torch.eye(logits.shape[0], dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / logits.shape[0]


def sigmoid_distillation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over pairs of `KL(Bernoulli(targets) || Bernoulli(sigmoid(logits)))`, over the batch.

    Shape: logits (B, B) with the bias added, targets (B, B) -> ().
    """
    match = F.kl_div(F.logsigmoid(logits), targets, reduction="sum")
    no_match = F.kl_div(F.logsigmoid(-logits), 1 - targets, reduction="sum")
    return (match + no_match) / logits.shape[0]


@torch.no_grad()
def teacher_probabilities(image: Tensor, text: Tensor, spec: ReinforcedSigmoidLossSpec) -> Tensor:
    """Return the mean over the teachers of the probability that a pair matches; see `ReinforcedSigmoidLoss`.

    Shape: image, text (B, sum of dims) -> (B, B), images as rows.
    """
    found = []
    images, texts = (torch.split(one, list(spec.teacher_dims), dim=1) for one in (image, text))
    for image_k, text_k, scale, bias in zip(images, texts, spec.teacher_logit_scales, spec.biases, strict=True):
        if bias is None:
            over_texts, over_images = teacher_targets(
                image_k, text_k, teacher_dims=(image_k.shape[1],), teacher_logit_scales=(scale,)
            )
            found.append((over_texts + over_images.mT) / 2)
        else:
            unit = F.normalize(image_k, dim=1), F.normalize(text_k, dim=1)
            found.append(torch.sigmoid(similarity_logits(*unit, scale) + bias))
    return torch.stack(found).mean(dim=0)


def dense_loss(
    spec: LossSpec,
    *,
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    teacher_image: Tensor | None = None,
    teacher_text: Tensor | None = None,
    syn_text: Tensor | None = None,
    teacher_syn_text: Tensor | None = None,
    logit_bias: Tensor | float = 0.0,
) -> LossTerms:
    """Return what the loss that `spec` builds returns, in memory that grows with the batch's square.

    Args:
        spec: one of this package's losses.
        image: the student's image embeddings.
        text: the student's embeddings of the real captions.
        logit_scale: the student's inverse temperature, after `exp`.
        teacher_image: the teachers' embeddings of the images, concatenated.
        teacher_text: the teachers' embeddings of the real captions, concatenated.
        syn_text: the student's embeddings of the synthetic captions.
        teacher_syn_text: the teachers' embeddings of the synthetic captions, concatenated.
        logit_bias: the bias of a sigmoid loss.

    Raises:
        ValueError: if the loss is none of them.
    """
    terms = []
    for one, teacher in ((text, teacher_text), (syn_text, teacher_syn_text)):
        if one is not None:
            pair = None if teacher_image is None or teacher is None else (teacher_image, teacher)
            terms.append(_terms(spec, similarity_logits(image, one, logit_scale), logit_bias, pair))
    contrastive, distillation = (torch.stack(values).sum() for values in zip(*terms, strict=True))
    return LossTerms(contrastive=contrastive, distillation=distillation, total=contrastive + distillation)


def _terms(
    spec: LossSpec, logits: Tensor, bias: Tensor | float, teachers: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    contrastive, distillation = logits.new_zeros(()), logits.new_zeros(())
    match spec:
        case ContrastiveLossSpec():
            contrastive = contrastive_loss(logits)
        case SigmoidLossSpec():
            contrastive = sigmoid_loss(logits + bias)
        case ReinforcedLossSpec():
            if spec.contrastive_weight > 0:
                contrastive = spec.contrastive_weight * contrastive_loss(logits)
            if spec.distill_weight > 0:
                assert teachers is not None, "a loss that distils has teachers"
                targets = teacher_targets(
                    *teachers, teacher_dims=spec.teacher_dims, teacher_logit_scales=spec.teacher_logit_scales
                )
                distillation = spec.distill_weight * distillation_loss(logits, *targets)
        case ReinforcedSigmoidLossSpec():
            if spec.contrastive_weight > 0:
                contrastive = spec.contrastive_weight * sigmoid_loss(logits + bias)
            if spec.distill_weight > 0:
                assert teachers is not None, "a loss that distils has teachers"
                probabilities = teacher_probabilities(*teachers, spec)
                distillation = spec.distill_weight * sigmoid_distillation_loss(logits + bias, probabilities)
        case _:
            raise ValueError(f"{type(spec).__name__} has no dense form here; it is a loss of its own")
    return contrastive, distillation
