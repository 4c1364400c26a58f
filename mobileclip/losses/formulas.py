"""The losses as their formulas read, with every matrix held: what the tiled losses are checked and measured against.

Plain operations, so that autograd differentiates them as often as wanted; memory grows with the batch's square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.hardware.devices import in_float64
from mobileclip.losses.specs import LossSpec, LossTerms, PairLossSpec


def compute_dtype(embedding: Tensor) -> torch.dtype:
    """Return the dtype of similarities and softmaxes: float32, or float64 where the embeddings have it."""
    return torch.promote_types(embedding.dtype, torch.float32)


def check_pair(image: Tensor, text: Tensor, names: tuple[str, str]) -> None:
    """Raise unless two embedding batches are (B, D) and pair row by row.

    Raises:
        ValueError: if one is not a matrix, the batches or the dims differ, or the batch is empty.
    """
    for name, value in zip(names, (image, text), strict=True):
        if value.ndim != 2:
            raise ValueError(f"{name} must be (batch, dim), but its shape is {tuple(value.shape)}")
    if image.shape[0] != text.shape[0]:
        raise ValueError(
            f"{names[0]} has {image.shape[0]} rows and {names[1]} has {text.shape[0]}; they pair row by row, so the "
            "batches must be equal"
        )
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"{names[0]} has dim {image.shape[1]} and {names[1]} has dim {text.shape[1]}; both towers must embed into "
            "the same space"
        )
    if image.shape[0] == 0:
        raise ValueError(f"{names[0]} and {names[1]} are empty; a loss needs at least one pair")


def similarity_logits(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the scaled similarity of every image with every text, `logit_scale * image @ text.T`.

    Low-precision embeddings are widened first, under autocast too: at a scale of 100 a bfloat16 product is wrong by
    tenths of a logit.

    Shape: image (B, D), text (B, D) -> (B, B), images as rows.

    Args:
        image: unit-length image embeddings.
        text: unit-length text embeddings, row by row the partners of the images.
        logit_scale: inverse temperature, after `exp`; a scalar.
    """
    with torch.autocast(image.device.type, enabled=False):
        dtype = compute_dtype(image)
        scale = logit_scale.to(dtype) if isinstance(logit_scale, Tensor) else logit_scale
        return scale * (image.to(dtype) @ text.to(dtype).mT)


def contrastive_loss(logits: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of the matching pairs on the diagonal.

    `(CE(logits, i) + CE(logits.T, i)) / 2`, each the mean over its rows.

    Shape: logits (B, B), images as rows -> ().
    """
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.mT, labels)) / 2


def distillation_loss(logits: Tensor, over_texts: Tensor, over_images: Tensor) -> Tensor:
    """Return the divergence of the student's softmaxes from the teachers', the mean of both directions.

    `(KL(over_texts || softmax(logits)) + KL(over_images || softmax(logits.T))) / 2`, each the mean over its rows.

    Shape: logits (B, B) with images as rows, over_texts (B, B), over_images (B, B) with texts as rows -> ().

    Source: Eq. 3.

    Differs: the release reports the cross-entropy, larger by the targets' entropy; the gradient is the same.

    Examples:
        >>> logits = torch.rand(4, 4)
        >>> abs(distillation_loss(logits, logits.softmax(1), logits.T.softmax(1)).item()) < 1e-6
        True
    """
    image_to_text = F.kl_div(logits.log_softmax(dim=1), over_texts, reduction="batchmean")
    text_to_image = F.kl_div(logits.mT.log_softmax(dim=1), over_images, reduction="batchmean")
    return (image_to_text + text_to_image) / 2


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


def teacher_logits(
    image: Tensor, text: Tensor, *, teacher_dims: Sequence[int], teacher_logit_scales: Sequence[float]
) -> Iterator[Tensor]:
    """Yield each teacher's `scale_k * image_k @ text_k.T`.

    Embeddings are brought to unit length first: they are stored rounded, and a scale of 100 makes that count.

    Shape: image, text (B, sum of dims) -> (B, B) per teacher, images as rows.
    """
    images, texts = (torch.split(one.to(compute_dtype(one)), list(teacher_dims), dim=1) for one in (image, text))
    for image_k, text_k, scale in zip(images, texts, teacher_logit_scales, strict=True):
        yield similarity_logits(F.normalize(image_k, dim=1), F.normalize(text_k, dim=1), scale)


@torch.no_grad()
def teacher_targets(
    image: Tensor, text: Tensor, *, teacher_dims: Sequence[int], teacher_logit_scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the ensemble's two distributions, images over texts and texts over images.

    `1/K sum_k softmax(scale_k * image_k @ text_k.T)`, and the same with image and text exchanged.

    Shape: image, text (B, sum of dims) -> (B, B) with images as rows, (B, B) with texts as rows; a row sums to one.

    Args:
        image: the teachers' image embeddings, concatenated; each teacher's are brought to unit length.
        text: the teachers' text embeddings, concatenated in the same order.
        teacher_dims: the dims of the teachers, in that order.
        teacher_logit_scales: the inverse temperatures of the teachers, after `exp`.

    Differs: one path of the release takes the first's transpose for the second; the rows of that do not sum to one.

    Examples:
        >>> teachers = {"teacher_dims": (4, 3), "teacher_logit_scales": (100.0, 50.0)}
        >>> over_texts, over_images = teacher_targets(torch.rand(5, 7), torch.rand(5, 7), **teachers)
        >>> torch.allclose(over_images.sum(dim=1), torch.ones(5))
        True
    """
    over_texts, over_images = image.new_zeros(2, len(image), len(text), dtype=compute_dtype(image)).unbind()
    for logits in teacher_logits(image, text, teacher_dims=teacher_dims, teacher_logit_scales=teacher_logit_scales):
        over_texts.add_(logits.softmax(dim=1))
        over_images.add_(logits.mT.softmax(dim=1))
    return over_texts.div_(len(teacher_dims)), over_images.div_(len(teacher_dims))


@torch.no_grad()
def teacher_probabilities(image: Tensor, text: Tensor, spec: PairLossSpec) -> Tensor:
    """Return the mean over the teachers of the probability that a pair matches; see `ReinforcedSigmoidLoss`.

    Shape: image, text (B, sum of dims) -> (B, B), images as rows.
    """
    dims, scales = spec.teacher_dims, spec.teacher_logit_scales
    total = image.new_zeros(len(image), len(text), dtype=compute_dtype(image))
    logits = teacher_logits(image, text, teacher_dims=dims, teacher_logit_scales=scales)
    for one, bias in zip(logits, spec.teacher_biases, strict=True):
        total += (one.softmax(dim=1) + one.softmax(dim=0)) / 2 if bias is None else torch.sigmoid(one + bias)
    return total.div_(len(dims))


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

    Unlike the tiled losses it can be differentiated twice: for gradient penalties, Hessians and the like.

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

    Examples:
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> dense = dense_loss(ContrastiveLossSpec(), image=image, text=text, logit_scale=10.0)
        >>> torch.allclose(dense.total, ContrastiveLoss()(image=image, text=text, logit_scale=10.0).total)
        True
    """
    if not isinstance(spec, PairLossSpec):
        raise ValueError(f"{type(spec).__name__} has no dense form here; it is a loss of its own")
    terms = []
    for captions, teacher in ((text, teacher_text), (syn_text, teacher_syn_text)):
        if captions is not None:
            pair = None if teacher_image is None or teacher is None else (teacher_image, teacher)
            terms.append(_terms(spec, similarity_logits(image, captions, logit_scale), logit_bias, pair))
    contrastive, distillation = (torch.stack(values).sum() for values in zip(*terms, strict=True))
    return LossTerms(contrastive, distillation, contrastive + distillation)


def _terms(
    spec: PairLossSpec, logits: Tensor, bias: Tensor | float, teachers: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    softmax = spec.initial_logit_bias is None
    logits = logits if softmax else logits + bias
    contrastive, distillation = logits.new_zeros(()), logits.new_zeros(())
    if spec.contrastive_weight > 0:
        contrastive = spec.contrastive_weight * (contrastive_loss(logits) if softmax else sigmoid_loss(logits))
    if spec.distill_weight > 0:
        assert teachers is not None, "a loss that distils has teachers"
        if softmax:
            dims, scales = spec.teacher_dims, spec.teacher_logit_scales
            targets = teacher_targets(*teachers, teacher_dims=dims, teacher_logit_scales=scales)
            distillation = spec.distill_weight * distillation_loss(logits, *targets)
        else:
            probabilities = teacher_probabilities(*teachers, spec)
            distillation = spec.distill_weight * sigmoid_distillation_loss(logits, probabilities)
    return contrastive, distillation


@attrs.frozen(kw_only=True)
class TargetDivergence:
    """Divergence of the stored targets from the exact ones, in nats: a mean over the batch for every teacher.

    Args:
        image_to_text: of the images' distributions over the texts.
        text_to_image: of the texts' distributions over the images.

    Examples:
        >>> TargetDivergence(image_to_text=(0.25, 0.5), text_to_image=(0.25, 1.0)).mean
        0.5
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
    """Return how far each teacher's softmaxes move when its embeddings are replaced with stored, rounded ones.

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

    Examples:
        >>> image, text = nn.functional.normalize(torch.randn(2, 8, 64), dim=-1)
        >>> stored, exact = (image.bfloat16(), text.bfloat16()), {"exact_image": image, "exact_text": text}
        >>> 0 < distillation_target_kl(*stored, **exact, teacher_dims=(64,), teacher_logit_scales=(100.0,)).mean < 0.1
        True
    """
    check_pair(stored_image, stored_text, ("stored_image", "stored_text"))
    check_pair(exact_image, exact_text, ("exact_image", "exact_text"))
    check_pair(stored_image, exact_image, ("stored_image", "exact_image"))
    if sum(teacher_dims) != stored_image.shape[1] or len(teacher_dims) != len(teacher_logit_scales):
        raise ValueError(
            f"teacher_dims {tuple(teacher_dims)} must sum to the embeddings' dim {stored_image.shape[1]}, with one of "
            f"teacher_logit_scales {tuple(teacher_logit_scales)} for each"
        )
    stored, exact = (
        teacher_logits(*map(in_float64, pair), teacher_dims=teacher_dims, teacher_logit_scales=teacher_logit_scales)
        for pair in ((stored_image, stored_text), (exact_image, exact_text))
    )
    found = [(_divergence(a, b), _divergence(a.mT, b.mT)) for a, b in zip(stored, exact, strict=True)]
    image_to_text, text_to_image = zip(*found, strict=True)
    return TargetDivergence(image_to_text=image_to_text, text_to_image=text_to_image)


def _divergence(logits: Tensor, targets: Tensor) -> float:
    predicted, target = logits.log_softmax(dim=1), targets.log_softmax(dim=1)
    return float(F.kl_div(predicted, target, reduction="batchmean", log_target=True))
