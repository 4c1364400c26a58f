"""Scores over steps, and the number of steps that one training variant needs for the score of another variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.9


@attrs.frozen(kw_only=True, eq=False)
class Curve:
    """A score of one variant over budgets and seeds.

    Shape:
        steps: (budgets,), increasing; scores: for each budget, (its seeds,); hits: for each budget, (its seeds,
            images).

    Args:
        scores: scores in per cent of the images.
        hits: masks of the correct images in each score; empty if any training stored only the score.
        num_pictures: number of images per score; 0 leaves the noise of images out of intervals.
    """

    steps: Array
    scores: tuple[Array, ...]
    hits: tuple[Bits, ...] = ()
    num_pictures: int = 0

    @property
    def mean(self) -> Array:
        """Means over the seeds.

        Shape:
            (budgets,).
        """
        return np.array([one.mean() for one in self.scores])


@attrs.frozen(kw_only=True)
class Interval:
    """An estimate with an interval from resampling.

    Args:
        value: value for the means over all seeds.
        low: lower end of the interval; zero if it is below the measured range.
        high: upper end of the interval; infinite if it is above the measured range.
    """

    value: float
    low: float
    high: float


def make_curve(
    scores: Mapping[tuple[int, int], float],
    hits: Mapping[tuple[int, int], Bits] | None = None,
    *,
    num_pictures: int = 0,
    fewest_budgets: int = 2,
) -> Curve | None:
    """Return a curve over the budgets that any seed has finished, or None if there are too few budgets.

    Args:
        scores: scores by budget and seed.
        hits: hits of the same trainings, or of the trainings that stored hits.
        num_pictures: number of images per score.
        fewest_budgets: minimum number of budgets; interpolation needs two.
    """
    by_budget: dict[int, list[tuple[int, int]]] = {}
    for budget, seed in sorted(scores):
        by_budget.setdefault(budget, []).append((budget, seed))
    if len(by_budget) < fewest_budgets:
        return None
    is_whole = hits is not None and set(scores) <= set(hits)
    return Curve(
        steps=np.array([*by_budget], dtype=np.float64),
        scores=tuple(np.array([scores[one] for one in group]) for group in by_budget.values()),
        hits=tuple(np.stack([hits[one] for one in group]) for group in by_budget.values()) if hits and is_whole else (),
        num_pictures=num_pictures,
    )


def _crossings(scores: Array, steps: Array, means: Array) -> Array:
    """Return the smallest number of steps at which each curve reaches its score.

    Between two budgets, the score is linear in the logarithm of the steps. A curve that starts at or above the score
    gives zero, which means fewer steps than its first budget. A curve that never reaches the score gives infinity.

    Shape:
        scores: (curves,); steps: (budgets,); means: (curves, budgets); result: (curves,).
    """
    is_reached = means >= scores[:, None]
    first = is_reached.argmax(1)
    at, rows = np.maximum(first, 1), np.arange(len(means))
    low, high = means[rows, at - 1], means[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = steps[at - 1] * (steps[at] / steps[at - 1]) ** ((scores - low) / (high - low))
    return np.where(is_reached.any(1), np.where(first == 0, 0.0, crossing), math.inf)


def speedup(baseline: Curve, other: Curve, *, budget: int | None = None) -> Interval:
    """Return the ratio of the baseline's steps to the steps that another variant needs for the same score.

    The value is infinite if the other variant's first budget already reaches the score, and zero if no budget does;
    `speedup_limits` gives the bounds that apply then.

    Args:
        baseline: curve with the score to reach.
        other: curve of the other variant.
        budget: index of the baseline's budget; None for its best score, the highest mean of a budget, with the smallest
            number of steps that reaches this score.
    """

    def ratio(one: Array, two: Array) -> Array:
        index = one.argmax(1) if budget is None else np.full(len(one), budget)
        needed = _crossings(one[np.arange(len(one)), index], other.steps, two)
        with np.errstate(divide="ignore"):
            return np.asarray(baseline.steps[index] / needed)

    return _estimate(baseline, other, ratio)


def speedup_limits(baseline: Curve, other: Curve, *, budget: int | None = None) -> tuple[float, float]:
    """Return the minimum and the maximum of `speedup` that the other variant's budgets can show."""
    needed = baseline.steps[int(np.argmax(baseline.mean)) if budget is None else budget]
    return float(needed / other.steps[-1]), float(needed / other.steps[0])


def difference(baseline: Curve, other: Curve, *, steps: int) -> Interval:
    """Return the difference in points between another variant and the baseline at a budget that both have."""
    first, second = (int(np.flatnonzero(curve.steps == steps)[0]) for curve in (baseline, other))
    return _estimate(baseline, other, lambda one, two: two[:, second] - one[:, first])


def half_widths(curve: Curve) -> Array:
    """Return half the width of the central 90 % of each budget's mean under resampling of seeds and images.

    Shape:
        (budgets,).
    """
    rng = np.random.default_rng(0)
    drawn = _resampled(curve, rng, _weights(curve.num_pictures, rng) if curve.hits else None)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return np.asarray((high - low) / 2)


def _weights(num_pictures: int, rng: np.random.Generator) -> Array:
    """Return the weight of each image in per cent under resampling of the same number of images.

    Shape:
        (resamples, pictures).
    """
    chances = np.full(num_pictures, 1 / num_pictures)
    return 100 * rng.multinomial(num_pictures, chances, size=NUM_RESAMPLES).astype(np.float64) / num_pictures


def _estimate(baseline: Curve, other: Curve, statistic: Callable[[Array, Array], Array]) -> Interval:
    """Return a statistic of two curves' means, and the interval of its values under resampling of the trainings.

    The function resamples seeds for each budget. If both curves have hits, it also resamples images, the same images
    for all trainings.
    """
    rng = np.random.default_rng(0)
    weights = _weights(baseline.num_pictures, rng) if baseline.hits and other.hits else None
    values = np.sort(statistic(_resampled(baseline, rng, weights), _resampled(other, rng, weights)))
    cut = round((1 - CONFIDENCE) / 2 * (NUM_RESAMPLES - 1))
    value = float(statistic(baseline.mean[None], other.mean[None])[0])
    return Interval(value=value, low=float(values[cut]), high=float(values[-1 - cut]))


def _resampled(curve: Curve, rng: np.random.Generator, weights: Array | None) -> Array:
    """Return means of resampled seeds; a single seed has the deviations of the next shorter budget's seeds.

    Without weights of images, each mean has the noise of an independent sample of images. This overestimates the noise,
    since different trainings classify the same images correctly.

    Shape:
        weights: (resamples, pictures); result: (resamples, budgets).
    """
    means, offsets = [], np.zeros((NUM_RESAMPLES, 1))
    for index, one in enumerate(curve.scores):
        scores = np.tile(one, (NUM_RESAMPLES, 1)) if weights is None else weights @ curve.hits[index].T
        if len(one) > 1:
            # Resampling few seeds underestimates the variance by this factor.
            offsets = (scores - scores.mean(1, keepdims=True)) * math.sqrt(len(one) / (len(one) - 1))
        drawn = rng.integers(offsets.shape[1], size=scores.shape)
        mean = scores.mean(1) + np.take_along_axis(offsets, drawn, axis=1).mean(1)
        if weights is None and curve.num_pictures:
            chance = np.clip(mean / 100, 0, 1)
            mean = rng.binomial(curve.num_pictures, chance) * (100 / curve.num_pictures)
        means.append(mean)
    return np.stack(means, 1)


def describe(interval: Interval, *, limits: Sequence[float], digits: int = 0) -> str:
    """Return an interval as text, with ends outside the measured range as `< 100` or `> 3200`.

    Args:
        interval: the estimate.
        limits: lowest and highest measured value.
        digits: after the decimal point.
    """

    def one(value: float) -> str:
        if value == 0:
            return f"< {limits[0]:,.{digits}f}"
        return f"> {limits[1]:,.{digits}f}" if math.isinf(value) else f"{value:,.{digits}f}"

    if interval.low == interval.high == interval.value:
        return one(interval.value)
    return f"{one(interval.value)} ({one(interval.low)} to {one(interval.high)})"
