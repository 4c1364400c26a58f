"""Confidence intervals of metrics and of differences between models, from what is right image by image."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


@attrs.frozen
class Interval:
    """A confidence interval, as fractions of one.

    Args:
        low: its lower end.
        high: its upper end.
    """

    low: float
    high: float


@attrs.frozen(kw_only=True)
class PairedDifference:
    """The difference between two models on the same questions, with its interval.

    Args:
        difference: mean of `after` less mean of `before`, as a fraction of one.
        interval: interval of the difference.
        num_questions: that both were asked.
    """

    difference: float
    interval: Interval
    num_questions: int


def proportion_interval(hits: float, total: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a share: the values that a score test would not refuse.

    `(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`

    Args:
        hits: how many were right; a fraction where ties count in part, for which the interval is rather too wide.
        total: of how many independent ones, at least 1: of retrieval, images and not captions.
        confidence: how often the interval holds the true share, in (0, 1).

    Raises:
        ValueError: if there is nothing to count, or more hits than there are.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"expected at least one question and from none to all of them as hits, got {hits} of {total}")
    share = hits / total
    z = _quantile(confidence)
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    # At the ends, what rounding leaves would be a share below 0 or above 1.
    low = 0.0 if hits == 0 else (centre - spread) / scale
    high = 1.0 if hits == total else (centre + spread) / scale
    return Interval(low, high)


def paired_difference(before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """Return the difference of two models that answered the same questions, and where the true one lies.

    With the differences `d` of `n` questions and two more, half of which are 1, -1, 0 and 0,
    `m -+ z sqrt((s - m^2) / (n + 2))`, where `m = sum(d) / (n + 2)` and `s = (sum(d^2) + 1) / (n + 2)`. Models that
    answer alike are so not known to be equal.

    Shape:
        before, after: `(questions,)`.

    Args:
        before: how right the first model was, from 0 to 1, by question: 0 or 1, or a fraction.
        after: the second one, in the same order.
        confidence: how often the interval holds the true difference, in (0, 1).

    Raises:
        ValueError: if there is no question, the two differ in number, or a value is not finite.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"expected one value per question from both models, and at least one question; got {first.shape} and "
            f"{second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a value is NaN or infinite; expected from 0, wrong, to 1, right")
    differences, total = second - first, len(first) + 2
    mean = float(differences.sum()) / total
    variance = (float(np.square(differences).sum()) + 1) / total - mean * mean
    spread = _quantile(confidence) * math.sqrt(variance / total)
    return PairedDifference(
        difference=float(differences.mean()),
        interval=Interval(max(-1.0, mean - spread), min(1.0, mean + spread)),
        num_questions=len(first),
    )


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return the interval of the mean of independent values: the distances to the ends of theirs, added in square.

    Args:
        values: at least one.
        intervals: intervals of each of them.
    """
    mean = fmean(values)
    below, above = (
        math.hypot(*(value - end for value, end in zip(values, ends, strict=True))) / len(values)
        for ends in ([one.low for one in intervals], [one.high for one in intervals])
    )
    return Interval(mean - below, mean + above)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95; got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


@attrs.frozen(kw_only=True, eq=False)
class Outcomes:
    """The main metric as values of the images: it is their mean, or their mean in the worst group.

    Shape:
        values, groups: `(images,)`.

    Args:
        keys: keys of the images, in order; two models were asked the same where they are equal.
        values: how right the model was, by image: 0 or 1 for top-1 accuracy; a fraction for retrieval, of an image and
            its captions; for a mean over classes, what the image adds to it, times the number of images; for macro F1,
            see `macro_f1_values`.
        num_effective: as many images of equal weight would make the metric as sure.
        groups: number of each image's group where the worst group counts.

    Raises:
        ValueError: if there are more or fewer groups than values.
    """

    keys: tuple[str, ...]
    values: NDArray[np.float32]
    num_effective: float
    groups: NDArray[np.int64] | None = None

    def __attrs_post_init__(self) -> None:
        if self.groups is not None and self.groups.shape != self.values.shape:
            raise ValueError(f"there are groups {self.groups.shape} for values {self.values.shape}, expected as many")

    @property
    def pairs(self) -> Iterator[tuple[str, float]]:
        """Keys of the images, each with its value."""
        return zip(self.keys, self.values.tolist(), strict=True)

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
        if self.keys != other.keys:
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
        keys: keys of the images.
        values: how right the model was on each.
        weights: weights of the images, adding up to one; equal ones if left out.
    """
    each, shares = _weighted(values, weights)
    return Outcomes(
        keys=tuple(keys),
        values=(each * shares * len(each)).astype(np.float32),
        num_effective=effective_number(shares),
    )


def _weighted(values: ArrayLike, weights: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    each = np.asarray(values, dtype=np.float64)
    return each, np.full(len(each), 1 / len(each)) if weights is None else np.asarray(weights, dtype=np.float64)


def clustered_outcomes(keys: Sequence[str], values: ArrayLike, weights: ArrayLike | None = None) -> Outcomes:
    """Return the outcomes of a metric that is a mean over questions, of which several may be about one image.

    Questions about one image are not independent: an image counts once, with the mean of its questions.

    Args:
        keys: keys of the image that each question is about.
        values: how right the model was on each question.
        weights: of the questions, adding up to one; equal ones if left out. Images without weight are left out.

    Source: Kish, "Survey sampling", 1965, for clusters.
    """
    each, shares = _weighted(values, weights)
    counted = shares > 0
    kept = [key for key, counts in zip(keys, counted, strict=True) if counts]
    images = list(dict.fromkeys(kept))
    place = {key: number for number, key in enumerate(images)}
    of_images = np.array([place[key] for key in kept])
    weight = np.bincount(of_images, weights=shares[counted])
    return outcomes_of(images, np.bincount(of_images, weights=(shares * each)[counted]) / weight, weight / weight.sum())


def worst_group_outcomes(keys: Sequence[str], values: ArrayLike, groups: ArrayLike) -> Outcomes:
    """Return the outcomes of the accuracy in the worst group.

    Args:
        keys: keys of the images.
        values: how right the model was on each.
        groups: number of each image's group.
    """
    return attrs.evolve(outcomes_of(keys, values), groups=np.asarray(groups, dtype=np.int64))


def macro_f1_outcomes(keys: Sequence[str], values: ArrayLike, labels: ArrayLike) -> Outcomes:
    """Return the outcomes of macro F1.

    As many images of equal weight are as sure as have a share's variance, `F1 (1 - F1) / n`, where the values' is as
    large; and no more than unequal classes leave, since values that are all alike say nothing of what was not seen.

    Args:
        keys: keys of the images.
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
