"""Correctness per image, from which intervals and paired comparisons are computed."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from typing import TYPE_CHECKING

import attrs
import numpy as np

from mobileclip.evaluation.metrics.intervals import Interval, PairedDifference, paired_difference, proportion_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


@attrs.frozen(kw_only=True, eq=False)
class Outcomes:
    """The main metric as values of the images: it is their mean, or their mean in the worst group.

    Shape:
        values, groups: `(images,)`.

    Args:
        asked: hash of the keys of the images in order; two models were asked the same where it is equal.
        values: how right the model was, by image: 0 or 1 for top-1 accuracy; a fraction for retrieval, of an image and
            its captions; for a mean over classes, what the image adds to it, times the number of images; for macro F1,
            see `macro_f1_values`.
        num_effective: as many images of equal weight would make the metric as sure.
        groups: number of each image's group where the worst group counts.

    Raises:
        ValueError: if there are more or fewer groups than values.
    """

    asked: str
    values: NDArray[np.float32]
    num_effective: float
    groups: NDArray[np.int64] | None = None

    def __attrs_post_init__(self) -> None:
        if self.groups is not None and self.groups.shape != self.values.shape:
            raise ValueError(f"there are groups {self.groups.shape} for values {self.values.shape}, expected as many")

    @property
    def value(self) -> float:
        """The main metric."""
        values = self.values.astype(np.float64)
        return float(values.mean()) if self.groups is None else min(right / there for right, there in self._by_group())

    @property
    def interval(self) -> Interval:
        """Where the true metric lies with 95 % confidence, from `proportion_interval`.

        Of the worst group, `[min over groups of low(95 %), min over groups of high(100 % - 5 % / groups)]`: the lower
        end needs to hold for the truly worst group alone, whichever it is; the upper one for all of them at once.

        Source: Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982, for the lower end, and
            Bonferroni's inequality for the upper one.
        """
        if self.groups is None:
            # What rounding leaves of a whole number is that number.
            total = max(1, math.floor(self.num_effective + 1e-6))
            return proportion_interval(min(1.0, max(0.0, self.value)) * total, total)
        groups = self._by_group()
        of_all = 1 - 0.05 / len(groups)
        return Interval(
            min(proportion_interval(*one).low for one in groups),
            min(proportion_interval(*one, confidence=of_all).high for one in groups),
        )

    def compared_with(self, other: Outcomes) -> PairedDifference | None:
        """Return how much better this model is than another one, or None where they were not asked the same.

        Of the worst group, which may be another one for each of them, the distances to the ends of both intervals are
        added in square.
        """
        if self.asked != other.asked or len(self.values) != len(other.values):
            return None
        if self.groups is None or other.groups is None:
            return paired_difference(other.values, self.values) if self.groups is other.groups else None
        if not np.array_equal(self.groups, other.groups):
            return None
        own, others, difference = self.interval, other.interval, self.value - other.value
        below = math.hypot(self.value - own.low, others.high - other.value)
        above = math.hypot(own.high - self.value, other.value - others.low)
        return PairedDifference(
            difference=difference,
            interval=Interval(difference - below, difference + above),
            num_questions=len(self.values),
        )

    def _by_group(self) -> list[tuple[float, int]]:
        """Return how many images of each group are right, and how many there are."""
        assert self.groups is not None, "the worst group counts"
        there, right = np.bincount(self.groups), np.bincount(self.groups, weights=self.values.astype(np.float64))
        return [(min(float(right[group]), float(there[group])), int(there[group])) for group in np.flatnonzero(there)]


def outcomes_of(keys: Sequence[str], values: ArrayLike, weights: ArrayLike | None = None) -> Outcomes:
    """Return the outcomes of a metric that is a mean over images.

    Args:
        keys: of the images.
        values: how right the model was on each.
        weights: of the images, adding up to one; equal ones if left out.
    """
    each = np.asarray(values, dtype=np.float64)
    shares = np.full(len(each), 1 / len(each)) if weights is None else np.asarray(weights, dtype=np.float64)
    return Outcomes(
        asked=_hash(keys), values=(each * shares * len(each)).astype(np.float32), num_effective=effective_number(shares)
    )


def clustered_outcomes(keys: Sequence[str], values: ArrayLike, weights: ArrayLike | None = None) -> Outcomes:
    """Return the outcomes of a metric that is a mean over questions, of which several may be about one image.

    Questions about one image are not independent: an image counts once, with the mean of its questions.

    Args:
        keys: of the image that each question is about.
        values: how right the model was on each question.
        weights: of the questions, adding up to one; equal ones if left out. Images without weight are left out.

    Source: Kish, "Survey sampling", 1965, for clusters.
    """
    each = np.asarray(values, dtype=np.float64)
    shares = np.full(len(each), 1 / len(each)) if weights is None else np.asarray(weights, dtype=np.float64)
    images = list(dict.fromkeys(key for key, share in zip(keys, shares, strict=True) if share > 0))
    place = {key: number for number, key in enumerate(images)}
    counted = shares > 0
    of_images = np.array([place[key] for key, counts in zip(keys, counted, strict=True) if counts])
    weight = np.bincount(of_images, weights=shares[counted])
    return outcomes_of(images, np.bincount(of_images, weights=(shares * each)[counted]) / weight, weight / weight.sum())


def worst_group_outcomes(keys: Sequence[str], values: ArrayLike, groups: ArrayLike) -> Outcomes:
    """Return the outcomes of the accuracy in the worst group.

    Args:
        keys: of the images.
        values: how right the model was on each.
        groups: number of each image's group.
    """
    return attrs.evolve(outcomes_of(keys, values), groups=np.asarray(groups, dtype=np.int64))


def macro_f1_outcomes(keys: Sequence[str], values: ArrayLike, labels: ArrayLike) -> Outcomes:
    """Return the outcomes of macro F1.

    As many images of equal weight are as sure as have a share's variance, `F1 (1 - F1) / n`, where the values' is as
    large; and no more than unequal classes leave, since values that are all alike say nothing of what was not seen.

    Args:
        keys: of the images.
        values: from `macro_f1_values`.
        labels: index of the class that each image belongs to.

    Source: Takahashi et al., "Confidence interval for micro-averaged F1 and macro-averaged F1 scores", 2022, for the
    variance.
    """
    each, most = np.asarray(values, dtype=np.float64), effective_number(class_weights(labels))
    mean, variance = float(each.mean()), float(each.var()) / len(each)
    # What rounding leaves of no variance would be worth millions of images; there are no more than `most`.
    worth = max(1.0, mean * (1 - mean) / variance) if variance > 0 else most
    return attrs.evolve(outcomes_of(keys, each), num_effective=min(most, worth))


def class_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """Return the weights of questions, adding up to one, that make every class, or group, that is there count alike."""
    _, places, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (counts[places] * len(counts)))


def effective_number(weights: NDArray[np.float64]) -> float:
    """Return how many images of equal weight are as sure as those of these weights: `1 / sum(w^2)`.

    Source: Kish, "Survey sampling", 1965.
    """
    return float(1 / np.square(weights).sum())


def _hash(keys: Sequence[str]) -> str:
    return sha256(json.dumps(list(keys), ensure_ascii=True).encode()).hexdigest()
