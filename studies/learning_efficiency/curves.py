"""Scores over steps, and what a budget of one way of training is worth in steps of another."""

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
        steps: (budgets,), increasing; scores: for each budget, (its seeds,); hits: the same, (its seeds, pictures).

    Args:
        scores: in per cent of the pictures.
        hits: which pictures the scores count; none where any training kept the score alone.
        num_pictures: that the scores are of; 0 leaves the pictures' noise out of intervals.
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
    """An estimate and what resampling makes of it.

    Args:
        value: from the means over all seeds.
        low: end of the interval; zero where it lies below what was measured.
        high: end of the interval; infinite where it lies above what was measured.
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
    """Return a curve of the budgets that any seed has finished, or None if these are too few.

    Args:
        scores: by budget and seed.
        hits: of the same trainings, or of those that kept them.
        num_pictures: that the scores are of.
        fewest_budgets: without two, nothing can be looked up on a curve.
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
    """Return the first number of steps at which each curve reaches its score.

    Between two budgets the score is linear in the logarithm of the steps. A curve that starts at or above the score
    gives zero, for fewer than its first budget, and one that never gets there infinity.

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
    """Return how many times fewer steps another variant needs for a score of the baseline.

    Where the other variant's first budget is good enough already, the value is infinite, and where none is, it is zero:
    `speedup_limits` says more or less than what that means.

    Args:
        baseline: whose score is to be reached.
        other: what reaches it.
        budget: index of the baseline's budget; None for its best score, which is the highest mean of a budget, and
            whose steps are the fewest that reach it.
    """

    def ratio(one: Array, two: Array) -> Array:
        index = one.argmax(1) if budget is None else np.full(len(one), budget)
        needed = _crossings(one[np.arange(len(one)), index], other.steps, two)
        with np.errstate(divide="ignore"):
            return np.asarray(baseline.steps[index] / needed)

    return _estimate(baseline, other, ratio)


def speedup_limits(baseline: Curve, other: Curve, *, budget: int | None = None) -> tuple[float, float]:
    """Return the least and the greatest value of `speedup` that the budgets of the other variant can show."""
    needed = baseline.steps[int(np.argmax(baseline.mean)) if budget is None else budget]
    return float(needed / other.steps[-1]), float(needed / other.steps[0])


def difference(baseline: Curve, other: Curve, *, steps: int) -> Interval:
    """Return by how many points another variant is above the baseline after so many steps, which both have."""
    first, second = (int(np.flatnonzero(curve.steps == steps)[0]) for curve in (baseline, other))
    return _estimate(baseline, other, lambda one, two: two[:, second] - one[:, first])


def half_widths(curve: Curve) -> Array:
    """Return half the width of the central 90 % of each budget's mean, when seeds and pictures are drawn anew.

    Shape:
        (budgets,).
    """
    rng = np.random.default_rng(0)
    drawn = _resampled(curve, rng, _weights(curve.num_pictures, rng) if curve.hits else None)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return np.asarray((high - low) / 2)


def _weights(num_pictures: int, rng: np.random.Generator) -> Array:
    """Return how much each picture counts when as many are drawn anew, in per cent.

    Shape:
        (resamples, pictures).
    """
    chances = np.full(num_pictures, 1 / num_pictures)
    return 100 * rng.multinomial(num_pictures, chances, size=NUM_RESAMPLES).astype(np.float64) / num_pictures


def _estimate(baseline: Curve, other: Curve, statistic: Callable[[Array, Array], Array]) -> Interval:
    """Return a statistic of two curves' means, and the interval of its values when the trainings are drawn anew.

    Seeds are drawn for each budget. Where both curves have hits, so are the pictures, the same ones for all trainings.
    """
    rng = np.random.default_rng(0)
    weights = _weights(baseline.num_pictures, rng) if baseline.hits and other.hits else None
    values = np.sort(statistic(_resampled(baseline, rng, weights), _resampled(other, rng, weights)))
    cut = round((1 - CONFIDENCE) / 2 * (NUM_RESAMPLES - 1))
    value = float(statistic(baseline.mean[None], other.mean[None])[0])
    return Interval(value=value, low=float(values[cut]), high=float(values[-1 - cut]))


def _resampled(curve: Curve, rng: np.random.Generator, weights: Array | None) -> Array:
    """Return means of seeds that are drawn anew; a single one is as far off as one of the next shorter budget's.

    Without the pictures' weights, each mean has the noise of as many pictures of its own, which is more than they have:
    a picture that one training names is named by others, too.

    Shape:
        weights: (resamples, pictures); result: (resamples, budgets).
    """
    means, offsets = [], np.zeros((NUM_RESAMPLES, 1))
    for index, one in enumerate(curve.scores):
        scores = np.tile(one, (NUM_RESAMPLES, 1)) if weights is None else weights @ curve.hits[index].T
        if len(one) > 1:
            # Few that are drawn from few differ less than the few themselves, by this factor.
            offsets = (scores - scores.mean(1, keepdims=True)) * math.sqrt(len(one) / (len(one) - 1))
        drawn = rng.integers(offsets.shape[1], size=scores.shape)
        mean = scores.mean(1) + np.take_along_axis(offsets, drawn, axis=1).mean(1)
        if weights is None and curve.num_pictures:
            chance = np.clip(mean / 100, 0, 1)
            mean = rng.binomial(curve.num_pictures, chance) * (100 / curve.num_pictures)
        means.append(mean)
    return np.stack(means, 1)


def describe(interval: Interval, *, limits: Sequence[float], digits: int = 0) -> str:
    """Return an interval as people read it, with what lies outside of the measured range as `< 100` or `> 3200`.

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
