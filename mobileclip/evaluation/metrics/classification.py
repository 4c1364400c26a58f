"""Zero-shot classification: a class is the mean of its prompts' embeddings, an image belongs to the nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
import torch.nn.functional as F

from mobileclip.evaluation.metrics.ranking import hit_probability, require_embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@attrs.frozen(kw_only=True)
class ClassificationResult:
    """Accuracies as fractions of one.

    Args:
        top1: images whose class is the best-scored one.
        top5: images whose class is among the five best.
        mean_per_class: mean over the classes of their top-1, so that a frequent class counts no more than a rare one.
        num_images: images evaluated.
        num_classes: classes to choose from.
    """

    top1: float
    top5: float
    mean_per_class: float
    num_images: int
    num_classes: int


@attrs.frozen(kw_only=True, eq=False)
class Hits:
    """Per image: the predicted class, and whether the true class is in the top 1 and the top 5.

    Shape:
        predicted, top1, top5: `(images,)`.

    Args:
        predicted: index of the best-scored class, the first of equal ones.
        top1: how likely the image's class is the best-scored one: 0 or 1 without ties, see `hit_probability`.
        top5: how likely it is among the five best.
    """

    predicted: Tensor
    top1: Tensor
    top5: Tensor


def classification_hits(image: Tensor, classes: Tensor, labels: Tensor, *, chunk_size: int = 4096) -> Hits:
    """Compare images with classes by cosine similarity, one by one.

    Shape:
        image: `(images, dim)`; classes: `(classes, dim)`; labels: `(images,)`.

    Args:
        image: embeddings, normalised here.
        classes: one embedding per class, see `ensemble_prompts`; normalised here.
        labels: index of each image's class.
        chunk_size: images compared at once.

    Raises:
        ValueError: if shapes disagree or a label is no class.
    """
    require_embeddings("image", image)
    require_embeddings("class", classes, dim=image.shape[1])
    _require_labels(labels, image.shape[0], classes.shape[0])
    image, classes = F.normalize(image.float(), dim=-1), F.normalize(classes.float(), dim=-1)
    labels = labels.to(image.device)
    predicted, top1, top5 = [], [], []
    for start in range(0, len(image), chunk_size):
        scores = image[start : start + chunk_size] @ classes.T
        relevant = F.one_hot(labels[start : start + chunk_size], classes.shape[0]).bool()
        predicted.append(scores.argmax(dim=1))
        top1.append(hit_probability(scores, relevant, 1))
        top5.append(hit_probability(scores, relevant, 5))
    return Hits(predicted=torch.cat(predicted).cpu(), top1=torch.cat(top1).cpu(), top5=torch.cat(top5).cpu())


def mean_hits(hits: Hits, labels: Tensor, *, num_classes: int) -> ClassificationResult:
    """Return the accuracies over images, and over those of the classes that have images.

    Args:
        hits: of at least one image.
        labels: index of each image's class.
        num_classes: classes to choose from.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=num_classes)
    per_class = torch.bincount(labels, weights=hits.top1, minlength=num_classes)
    present = counts > 0
    return ClassificationResult(
        top1=float(hits.top1.mean()),
        top5=float(hits.top5.mean()),
        mean_per_class=float((per_class[present] / counts[present]).mean()),
        num_images=len(labels),
        num_classes=num_classes,
    )


def classification_accuracy(
    image: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    allow_absent: bool = False,
    chunk_size: int = 4096,
) -> ClassificationResult:
    """Score images against classes by cosine similarity.

    Shape:
        image: `(images, dim)`; classes: `(classes, dim)`; labels: `(images,)`.

    Args:
        image: embeddings, normalised here.
        classes: one embedding per class, see `ensemble_prompts`; normalised here.
        labels: index of each image's class.
        class_names: names of the classes, for messages.
        allow_absent: let classes without an image take part as wrong answers; the mean over classes is then one over
            those that have images.
        chunk_size: images compared at once.

    Raises:
        ValueError: if shapes disagree, a label is no class, or a class has no image and `allow_absent` is false.
    """
    hits = classification_hits(image, classes, labels, chunk_size=chunk_size)
    if not allow_absent:
        _require_images(torch.bincount(labels.cpu(), minlength=classes.shape[0]), class_names)
    return mean_hits(hits, labels, num_classes=classes.shape[0])


def _require_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    if labels.shape != (num_images,) or labels.is_floating_point():
        raise ValueError(
            f"expected {num_images} integer labels, one per image, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels go from {low} to {high}, but there are {num_classes} classes, counted from 0")


def _require_images(counts: Tensor, class_names: Sequence[str] | None) -> None:
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        shown = ", ".join(repr(class_names[index]) if class_names else str(index) for index in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise ValueError(
            f"no image of class {shown}{more}; leave the class out, or pass allow_absent=True to keep it as a "
            f"wrong answer"
        )
