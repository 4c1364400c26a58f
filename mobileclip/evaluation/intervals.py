"""Confidence intervals of metrics and of differences between models, computed from per-image results."""

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
    """A confidence interval of a metric from 0 to 1, or of a difference from -1 to 1.

    Args:
        low: lower end of the interval.
        high: upper end of the interval.
    """

    low: float
    high: float


@attrs.frozen(kw_only=True)
class PairedDifference:
    """The difference between two models on the same questions, with a confidence interval.

    Args:
        difference: mean of `after` minus mean of `before`, as a fraction from -1 to 1.
        interval: confidence interval of the difference.
        num_questions: number of questions that both models answered.
    """

    difference: float
    interval: Interval
    num_questions: int


def proportion_interval(hits: float, total: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's confidence interval of a proportion: all values that a score test does not reject.

    `(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`, where `p = hits / total`, `n = total` and
    `z` is the quantile of the normal distribution.

    Args:
        hits: number of correct answers; fractional if ties count in part, in which case the interval is slightly too
            wide.
        total: number of independent questions, at least 1; for retrieval, the number of images, not of captions.
        confidence: probability that the interval contains the true proportion, in (0, 1).

    Raises:
        ValueError: if `total` is less than 1, or `hits` is negative or greater than `total`.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"expected total of at least 1 and hits from 0 to total, got hits={hits} and total={total}")
    share = hits / total
    z = _quantile(confidence)
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    # At the ends, rounding errors could give a proportion below 0 or above 1.
    low = 0.0 if hits == 0 else (centre - spread) / scale
    high = 1.0 if hits == total else (centre + spread) / scale
    return Interval(low, high)


def paired_difference(before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """Return the difference between two models that answered the same questions, with a confidence interval.

    Four pseudo-questions with differences 1, -1, 0 and 0, each of weight 1/2, are added to the `n` questions with
    differences `d`. The interval is `m -+ z sqrt((s - m^2) / (n + 2))`, where `m = sum(d) / (n + 2)` and
    `s = (sum(d^2) + 1) / (n + 2)`. Thus the interval has a width greater than zero even if both models give the same
    answers.

    Shape:
        before, after: `(questions,)`.

    Args:
        before: score of the first model on each question: 0, 1, or a fraction between them.
        after: score of the second model on each question, in the order of `before`.
        confidence: probability that the interval contains the true difference, in (0, 1).

    Raises:
        ValueError: if there are no questions, `before` and `after` differ in length, or a value is not finite.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"expected two arrays with one value per question, and at least one question; got shapes {first.shape} and "
            f"{second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a value is NaN or infinite; expected values from 0 (wrong) to 1 (correct)")
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
    """Return the interval of the mean of independent values, with the distances to the ends added in quadrature.

    Args:
        values: independent values, at least one.
        intervals: confidence interval of each value.
    """
    mean = fmean(values)
    below, above = (
        math.hypot(*(value - end for value, end in zip(values, ends, strict=True))) / len(values)
        for ends in ([one.low for one in intervals], [one.high for one in intervals])
    )
    return Interval(mean - below, mean + above)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95; got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


@attrs.frozen(kw_only=True, eq=False)
class Outcomes:
    """The main metric as one value per image: the metric is the mean of the values, or the lowest group mean.

    Shape:
        values, groups: `(images,)`.

    Args:
        keys: keys of the images, in order; two models answered the same questions if their keys are equal.
        values: score of the model on each image. For top-1 accuracy: 0 or 1. For retrieval: a fraction for the image
            and its captions, see `Ranking.caption_hits`. For a mean over classes: the image's contribution to the
            metric, times the number of images. For macro F1: see `macro_f1_values`.
        num_effective: effective sample size: number of equally weighted images that would give the metric the same
            variance.
        groups: group index of each image for a worst-group metric; None for any other metric.

    Raises:
        ValueError: if the numbers of groups and values differ.
    """

    keys: tuple[str, ...]
    values: NDArray[np.float32]
    num_effective: float
    groups: NDArray[np.int64] | None = None

    def __attrs_post_init__(self) -> None:
        if self.groups is not None and self.groups.shape != self.values.shape:
            raise ValueError(f"expected groups of the shape of values, {self.values.shape}; got {self.groups.shape}")

    @property
    def pairs(self) -> Iterator[tuple[str, float]]:
        """Key and value of each image."""
        return zip(self.keys, self.values.tolist(), strict=True)

    @property
    def value(self) -> float:
        """The main metric: the mean of `values`, or the lowest group mean."""
        values = self.values.astype(np.float64)
        return float(values.mean()) if self.groups is None else min(right / there for right, there in self._by_group())

    @property
    def interval(self) -> Interval:
        """The 95 % confidence interval of the main metric, from `proportion_interval`.

        For the worst group: `[min over groups of low(95 %), min over groups of high(100 % - 5 % / groups)]`. The lower
        end must hold only for the truly worst group; the upper end must hold jointly for all groups.

        Source: Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982, for the lower end, and
            Bonferroni's inequality for the upper end.
        """
        if self.groups is None:
            # The tolerance keeps rounding errors from reducing a whole number by one.
            total = max(1, math.floor(self.num_effective + 1e-6))
            return proportion_interval(min(1.0, max(0.0, self.value)) * total, total)
        groups = self._by_group()
        of_all = 1 - 0.05 / len(groups)
        return Interval(
            min(proportion_interval(*one).low for one in groups),
            min(proportion_interval(*one, confidence=of_all).high for one in groups),
        )

    def compared_with(self, other: Outcomes) -> PairedDifference | None:
        """Return the difference of this model from `other`; None if the two models answered different questions.

        For the worst group, which may differ between the models, the distances to the ends of both intervals are
        combined in quadrature.
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
        """Return, for each group, the number of correctly answered images and the number of images."""
        assert self.groups is not None, "expected groups: the metric is over the worst group"
        there, right = np.bincount(self.groups), np.bincount(self.groups, weights=self.values.astype(np.float64))
        return [(min(float(right[group]), float(there[group])), int(there[group])) for group in np.flatnonzero(there)]


def outcomes_of(keys: Sequence[str], values: ArrayLike, weights: ArrayLike | None = None) -> Outcomes:
    """Return the outcomes of a metric that is a mean over images.

    Args:
        keys: keys of the images.
        values: score of the model on each image.
        weights: weights of the images, which sum to 1; equal weights by default.
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
    """Return the outcomes of a metric that is a mean over questions, possibly several about the same image.

    Questions about the same image are not independent, so each image counts once, with the mean score of its questions.

    Args:
        keys: key of the image for each question.
        values: score of the model on each question.
        weights: weights of the questions, which sum to 1; equal weights by default. The outcomes omit questions with
            zero weight.

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
    """Return the outcomes of the worst-group accuracy.

    Args:
        keys: keys of the images.
        values: score of the model on each image.
        groups: group index of each image.
    """
    return attrs.evolve(outcomes_of(keys, values), groups=np.asarray(groups, dtype=np.int64))


def macro_f1_outcomes(keys: Sequence[str], values: ArrayLike, labels: ArrayLike) -> Outcomes:
    """Return the outcomes of macro F1.

    The effective sample size is the number `n` of images for which the variance of a proportion, `F1 (1 - F1) / n`,
    equals the variance of the mean of the values. The size is at most the effective sample size of the class weights:
    values without any variance say nothing about unseen images.

    Args:
        keys: keys of the images.
        values: contribution of each image to macro F1, from `macro_f1_values`.
        labels: class index of each image.

    Source: Takahashi et al., "Confidence interval for micro-averaged F1 and macro-averaged F1 scores", 2022, for the
    variance.
    """
    each, most = np.asarray(values, dtype=np.float64), effective_number(class_weights(labels))
    mean, variance = float(each.mean()), float(each.var()) / len(each)
    # If rounding errors make a zero variance tiny but positive, `most` still limits the effective sample size.
    worth = max(1.0, mean * (1 - mean) / variance) if variance > 0 else most
    return attrs.evolve(outcomes_of(keys, each), num_effective=min(most, worth))


def class_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """Return one weight per question; the weights sum to 1, and all classes or groups in `labels` weigh the same."""
    _, places, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (counts[places] * len(counts)))


def effective_number(weights: NDArray[np.float64]) -> float:
    """Return the effective sample size of weighted images, `1 / sum(w^2)`.

    Source: Kish, "Survey sampling", 1965.
    """
    return float(1 / np.square(weights).sum())
