"""Metrics that look at more than the mean over images: the worst group, every class alike, sets of answers."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True)
class GroupAccuracy:
    """Accuracies by group, as fractions of one.

    Args:
        average: over all images.
        groups: by the group's number, of those that have images.
        counts: images by the group's number.
    """

    average: float
    groups: dict[int, float]
    counts: dict[int, int]

    @property
    def worst(self) -> float:
        """The lowest accuracy of a group, as FMoW counts by region, Dollar Street by income and GeoDE by region."""
        return min(self.groups.values())


def group_accuracy(hits: Tensor, groups: Tensor, *, ignore: Sequence[int] = ()) -> GroupAccuracy:
    """Return the accuracy in every group of images.

    Shape:
        hits, groups: `(images,)`.

    Args:
        hits: whether, or how likely, each image is classified right: see `hit_probability`.
        groups: the number of each image's group, from 0.
        ignore: groups that do not count, such as FMoW's region "Other" where WILDS reports it; their images still count
            in the average.

    Raises:
        ValueError: if shapes disagree, a group is negative, or no group is left.
    """
    if hits.shape != groups.shape or hits.ndim != 1 or groups.is_floating_point():
        raise ValueError(
            f"expected one hit and one whole number of a group per image, got {tuple(hits.shape)} and "
            f"{groups.dtype} of shape {tuple(groups.shape)}"
        )
    if hits.numel() and int(groups.min()) < 0:
        raise ValueError(f"groups are counted from 0, the least is {int(groups.min())}")
    counts = torch.bincount(groups)
    sums = torch.bincount(groups, weights=hits.double())
    kept = [group for group in counts.nonzero().flatten().tolist() if group not in ignore]
    if not kept:
        raise ValueError(f"there is no image in a group that counts; ignored are {list(ignore)}")
    return GroupAccuracy(
        average=float(hits.double().mean()),
        groups={group: float(sums[group] / counts[group]) for group in kept},
        counts={group: int(counts[group]) for group in kept},
    )


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of the harmonic mean of precision and recall, as iWildCam counts.

    Classes without an image do not count, but an image that is taken for one costs its own class.

    Shape:
        predicted, labels: `(images,)`, whole numbers.

    Raises:
        ValueError: if shapes disagree or there is no image.

    Source: Koh et al. 2021 (WILDS), section 4.1.1.
    """
    f1, _, there = _f1_by_class(predicted, labels)
    return float(f1[there > 0].mean())


def macro_f1_values(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return numbers by image whose mean is macro F1, and whose spread is that of macro F1 to the first order.

    `F1 + mean over classes c of ([c right] - F1_c ([c there] + [c said]) / 2) 2 n / (there_c + said_c)`, with brackets
    that are 1 or 0 for the image: macro F1, and what it changes by when the image weighs more: its infinitesimal
    jackknife.

    Shape:
        predicted, labels: `(images,)`, whole numbers; result: `(images,)`.

    Raises:
        ValueError: if shapes disagree or there is no image.

    Source: Efron, "The jackknife, the bootstrap and other resampling plans", 1982, section 6.1.
    """
    f1, seen, there = _f1_by_class(predicted, labels)
    counted = there > 0
    num_classes = int(counted.sum())
    # Of a class that does not count, nothing changes.
    weight = torch.where(counted, len(labels) / (num_classes * seen.clamp(min=1)), 0)
    change = 2 * (predicted == labels) * weight[labels] - (f1 * weight)[labels] - (f1 * weight)[predicted]
    return f1[counted].mean() + change


def _f1_by_class(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return F1 of every class, how often it is there or said, and how often it is there."""
    if predicted.shape != labels.shape or labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(
            f"expected a prediction and a label per image, got {tuple(predicted.shape)} and {tuple(labels.shape)}"
        )
    classes = int(torch.maximum(predicted.max(), labels.max())) + 1
    right = torch.bincount(labels[predicted == labels], minlength=classes).double()
    there = torch.bincount(labels, minlength=classes)
    seen = there + torch.bincount(predicted, minlength=classes)
    return 2 * right / seen.clamp(min=1), seen.double(), there


def association_score(similarity: Tensor, associated: Tensor) -> float:
    """Return how well the images that a cue is associated with are found among the candidates, as WinoGAViL counts.

    As many of the most similar candidates are taken as there are associated ones; the score is the Jaccard index of the
    two sets.

    Shape:
        similarity, associated: `(candidates,)`.

    Args:
        similarity: of every candidate to the cue; finite.
        associated: which candidates people associated, at least one.

    Raises:
        ValueError: if shapes disagree or nothing is associated.

    Source: Bitton et al. 2022 (WinoGAViL), section 3.
    """
    count = int(associated.sum())
    if similarity.shape != associated.shape or similarity.ndim != 1 or count == 0:
        raise ValueError(
            f"expected a similarity per candidate, one or more of them associated, got {tuple(similarity.shape)} and "
            f"{count} of {tuple(associated.shape)}"
        )
    found = int(associated[similarity.topk(count).indices].sum())
    return found / (2 * count - found)
