"""Confidence intervals of accuracies, and of the difference between two models on the same questions."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 9_999
VALUES_AT_ONCE = 1 << 22
"""Numbers that one portion of what is drawn has at most."""


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
    """The difference between two models on the same questions, with its interval and p-value.

    Args:
        difference: mean of `after` less mean of `before`, as a fraction of one.
        interval: of the difference.
        p_value: how likely a difference as large, either way, would be between models that are equally good.
        num_questions: that both were asked.
    """

    difference: float
    interval: Interval
    p_value: float
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


def paired_difference(
    before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Return the difference of two models that answered the same questions, how sure it is, and whether it is one.

    Where every answer is right or wrong, the interval is Newcombe's, from both shares' and their correlation, and the
    p-value that of McNemar's exact test: `2 P(X <= min(b, c))`, `X ~ Binomial(b + c, 1/2)`, of the `b` and `c`
    questions that one model alone had right. Where values are fractions, of ties or of several captions, the interval
    is the bootstrap's, unless all differences are alike, and the p-value that of flipping their signs, both by drawing.

    Shape:
        before, after: `(questions,)`.

    Args:
        before: how right the first model was, from 0 to 1, by question: 0 or 1, or a fraction.
        after: the second one, in the same order.
        confidence: how often the interval holds the true difference, in (0, 1).
        seed: of what is drawn; equal ones give equal numbers.

    Raises:
        ValueError: if there is no question, the two differ in number, or a value is not finite.

    Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", 1998, method 10; McNemar, 1947; Efron and Tibshirani, "An introduction to the bootstrap", 1993.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"expected one value per question from both models, and at least one question; got {first.shape} and "
            f"{second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a value is NaN or infinite; expected from 0, wrong, to 1, right")
    differences = second - first
    rng = np.random.default_rng(seed)
    if _is_binary(first) and _is_binary(second):
        interval = _newcombe(first, second, confidence)
        p_value = _mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
    else:
        # Drawing again from differences that are all alike says nothing of those that were not seen.
        alike = bool((differences == differences[0]).all())
        interval = _newcombe(first, second, confidence) if alike else _bootstrap(differences, confidence, rng)
        p_value = _sign_flips(differences, rng)
    return PairedDifference(
        difference=float(differences.mean()), interval=interval, p_value=p_value, num_questions=len(first)
    )


def newcombe_interval(one: float, other: float, covariance: float, total: int, confidence: float) -> Interval:
    """Return the interval of `other - one`: the distances to the ends of both shares' intervals, added in square.

    Args:
        one: share that the first model had right.
        other: that of the second.
        covariance: of the two models' answers.
        total: of how many questions, at least 1.
        confidence: how often the interval holds the true difference, in (0, 1).

    Source: Newcombe, 1998, method 10.
    """
    of_one, of_other = (proportion_interval(share * total, total, confidence=confidence) for share in (one, other))
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * total))
    variance = one * (1 - one) * other * (1 - other)
    correlation = covariance / math.sqrt(variance) if variance > 0 else 0.0
    below = _in_square(other - of_other.low, of_one.high - one, correlation)
    above = _in_square(of_other.high - other, one - of_one.low, correlation)
    return Interval(other - one - below, other - one + above)


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


def central_interval(drawn: NDArray[np.float64], confidence: float) -> Interval:
    """Return the ends between which the middle `confidence` of what was drawn lies.

    Shape:
        drawn: `(draws,)`.
    """
    low, high = np.quantile(drawn, ((1 - confidence) / 2, (1 + confidence) / 2)).tolist()
    return Interval(low, high)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95; got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _newcombe(first: NDArray[np.float64], second: NDArray[np.float64], confidence: float) -> Interval:
    one, other = float(first.mean()), float(second.mean())
    return newcombe_interval(one, other, float((first * second).mean()) - one * other, len(first), confidence)


def _in_square(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))


def _mcnemar(lost: int, won: int) -> float:
    from scipy.special import bdtr  # scipy.stats, which has the test by its name, takes three times as long to import

    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def _bootstrap(differences: NDArray[np.float64], confidence: float, rng: np.random.Generator) -> Interval:
    from scipy.stats import bootstrap

    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, VALUES_AT_ONCE // len(differences)),
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _sign_flips(differences: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Return how often signs that a coin decides give a sum as far from zero, the given signs counted among them.

    Scipy's `permutation_test` draws otherwise, and doubles the smaller tail where this counts both.
    """
    changed = np.abs(differences[differences != 0])
    if not len(changed):
        return 1.0
    # A sum that is equal but for rounding is as far.
    found = abs(float(differences.sum())) * (1 - 1e-9)
    at_once = max(1, VALUES_AT_ONCE // len(changed))
    num_as_far = 0
    for start in range(0, NUM_RESAMPLES, at_once):
        signs = rng.integers(2, size=(min(at_once, NUM_RESAMPLES - start), len(changed)), dtype=np.int8)
        num_as_far += int((np.abs(signs @ changed * 2 - changed.sum()) >= found).sum())
    return (1 + num_as_far) / (1 + NUM_RESAMPLES)
