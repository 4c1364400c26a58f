"""Scores over steps, and what a budget of one way of training is worth in steps of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.9
_FEWEST_BUDGETS = 2


@attrs.frozen(kw_only=True, eq=False)
class Curve:
    """A score of one variant over budgets and seeds.

    Shape:
        steps: (budgets,), increasing; scores: for each budget, (its seeds,).
    """

    steps: Array
    scores: tuple[Array, ...]

    @property
    def mean(self) -> Array:
        """Means over the seeds.

        Shape:
            (budgets,).
        """
        return np.array([one.mean() for one in self.scores])

    @property
    def deviation(self) -> Array:
        """Standard deviations over the seeds; not a number where there is one.

        Shape:
            (budgets,).
        """
        return np.array([one.std(ddof=1) if len(one) > 1 else np.nan for one in self.scores])


@attrs.frozen(kw_only=True)
class Interval:
    """An estimate and what resampling the seeds makes of it.

    Args:
        value: from the means over all seeds.
        low: end of the interval; zero where it lies below what was measured.
        high: end of the interval; infinite where it lies above what was measured.
    """

    value: float
    low: float
    high: float


def make_curve(scores: Mapping[tuple[int, int], float]) -> Curve | None:
    """Return a curve of the budgets that any seed has finished, or None if these are fewer than two.

    Args:
        scores: by budget and seed.
    """
    by_budget: dict[int, list[float]] = {}
    for (budget, _), score in sorted(scores.items()):
        by_budget.setdefault(budget, []).append(score)
    if len(by_budget) < _FEWEST_BUDGETS:
        return None
    return Curve(steps=np.array([*by_budget], dtype=np.float64), scores=tuple(map(np.array, by_budget.values())))


def steps_to_reach(score: float, steps: Array, means: Array) -> float:
    """Return the first number of steps at which a curve reaches a score.

    Between two budgets the score is linear in the logarithm of the steps. A curve that starts at or above the score
    gives zero, for fewer than its first budget, and one that never gets there infinity.

    Shape:
        steps, means: (budgets,).
    """
    if score <= means[0]:
        return 0.0
    for index in range(1, len(steps)):
        if means[index] >= score:
            part = (score - means[index - 1]) / (means[index] - means[index - 1])
            return float(steps[index - 1] * (steps[index] / steps[index - 1]) ** part)
    return math.inf


def equivalents(baseline: Curve, other: Curve) -> list[Interval]:
    """Return, for every budget of another variant, how many steps of the baseline give the same score."""

    def at(index: int) -> Interval:
        return _estimate(baseline, other, lambda one, two: steps_to_reach(two[index], baseline.steps, one))

    return [at(index) for index in range(len(other.steps))]


def speedup(baseline: Curve, other: Curve) -> Interval:
    """Return how many times fewer steps another variant needs for the best score of the baseline.

    The best score is the highest mean of a budget, and its steps are the fewest that reach it. Where the other
    variant's first budget is good enough already, the value is infinite, and where none is, it is zero:
    `speedup_limits` says more or less than what that means.
    """

    def ratio(one: Array, two: Array) -> float:
        best = int(np.argmax(one))
        needed = steps_to_reach(float(one[best]), other.steps, two)
        return float(baseline.steps[best] / needed) if needed > 0 else math.inf

    return _estimate(baseline, other, ratio)


def speedup_limits(baseline: Curve, other: Curve) -> tuple[float, float]:
    """Return the least and the greatest value of `speedup` that the budgets of the other variant can show."""
    needed = baseline.steps[int(np.argmax(baseline.mean))]
    return float(needed / other.steps[-1]), float(needed / other.steps[0])


def _estimate(baseline: Curve, other: Curve, statistic: Callable[[Array, Array], float]) -> Interval:
    """Return a statistic of two curves' means, and the interval of its values when the seeds are drawn anew."""
    rng = np.random.default_rng(0)
    drawn = zip(_resampled(baseline, rng), _resampled(other, rng), strict=True)
    values = sorted(statistic(one, two) for one, two in drawn)
    cut = round((1 - CONFIDENCE) / 2 * (NUM_RESAMPLES - 1))
    return Interval(value=statistic(baseline.mean, other.mean), low=values[cut], high=values[-1 - cut])


def _resampled(curve: Curve, rng: np.random.Generator) -> Array:
    """Return means of seeds that are drawn anew; a single one is as far off as one of the next shorter budget's.

    Shape:
        (resamples, budgets).
    """
    means, offsets = [], np.zeros(1)
    for scores in curve.scores:
        if len(scores) > 1:
            offsets = scores - scores.mean()
        drawn = rng.integers(len(offsets), size=(NUM_RESAMPLES, len(scores)))
        means.append(scores.mean() + offsets[drawn].mean(1))
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
