"""Confidence intervals of accuracies, and of the difference between two models on the same questions."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


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
        interval: of the difference.
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
        intervals: of each of them.
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
