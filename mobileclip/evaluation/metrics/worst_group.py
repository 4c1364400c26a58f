"""Accuracy in the worst of several groups, which is no mean over images: how sure it is, and a paired test of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mobileclip.evaluation.metrics.intervals import (
    NUM_RESAMPLES,
    VALUES_AT_ONCE,
    Interval,
    PairedDifference,
    central_interval,
    newcombe_interval,
    proportion_interval,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Groups = NDArray[np.int64]
    Values = NDArray[np.float64]


def worst_group_interval(groups: Groups, values: Values, *, confidence: float = 0.95) -> Interval:
    """Return an interval of the accuracy in the worst group, from Wilson's of every group.

    `[min over groups of low(confidence), min over groups of high(1 - (1 - confidence) / groups)]`

    The lower end needs to hold for the truly worst group alone, whichever it is; the upper one for all of them at once.
    Drawing anew would not do: the least of several means that are nearly alike is lower than all of them on average.

    Shape:
        groups, values: `(images,)`.

    Args:
        groups: number of each image's group, from 0.
        values: how right the model was, from 0 to 1.
        confidence: how often the interval holds the true accuracy, at least, in (0, 1).

    Source: Wilson, 1927; Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982, for the lower end,
    and Bonferroni's inequality for the upper one; Andrews, "Inconsistency of the bootstrap when a parameter is on the
    boundary of the parameter space", 2000, for what drawing anew does not give.
    """
    there, right = np.bincount(groups), np.bincount(groups, weights=values)
    kept = np.flatnonzero(there)
    of_all = 1 - (1 - confidence) / len(kept)
    hits = [(min(float(right[group]), float(there[group])), int(there[group])) for group in kept]
    return Interval(
        min(proportion_interval(*one, confidence=confidence).low for one in hits),
        min(proportion_interval(*one, confidence=of_all).high for one in hits),
    )


def paired_worst_group(
    groups: Groups, before: Values, after: Values, *, confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Return the difference in the worst group of two models that answered the same questions, and how sure it is.

    The p-value is that of exchanging the two models' answers, question by question, as a coin decides: how often the
    difference is then as large, either way. The interval is the bootstrap's, of questions drawn anew with both
    answers; where all draws give one difference, it is Newcombe's, of as many questions as the worst group has. With
    several groups that are nearly the worst it is approximate. Questions with equal answers are drawn together, as
    numbers of them, which is the same and sooner.

    Shape:
        groups, before, after: `(questions,)`.

    Args:
        groups: number of each question's group, from 0.
        before: how right the first model was, from 0 to 1.
        after: the second one, in the same order.
        confidence: how often the interval holds the true difference, in (0, 1).
        seed: of what is drawn; equal ones give equal numbers.

    Source: Noreen, "Computer-intensive methods for testing hypotheses", 1989; Efron and Tibshirani, "An introduction to
    the bootstrap", 1993; Newcombe, 1998.
    """
    rows, counts = np.unique(np.stack([groups.astype(np.float64), before, after]), axis=1, return_counts=True)
    kinds, first, second = rows[0].astype(np.int64), rows[1], rows[2]
    rng, shares = np.random.default_rng(seed), counts / counts.sum()
    drawn = [rng.multinomial(len(groups), shares, size=number) for number in _portions(len(counts))]
    differences = np.concatenate([_worst(kinds, second, one) - _worst(kinds, first, one) for one in drawn])
    one, other = (float(_worst(kinds, values, counts[None])[0]) for values in (first, second))
    if (differences == differences[0]).all():
        sizes, right = np.bincount(groups), np.bincount(groups, weights=before)
        total = int(sizes[np.divide(right, sizes, out=np.full(len(sizes), np.inf), where=sizes > 0).argmin()])
        common = one * (1 - one) if one == other else 0.0
        interval = newcombe_interval(one, other, common, total, confidence)
    else:
        interval = central_interval(differences, confidence)
    return PairedDifference(
        difference=other - one,
        interval=interval,
        p_value=_exchanged(kinds, (first, second), counts, rng),
        num_questions=len(groups),
    )


def _exchanged(
    groups: Groups, answers: tuple[Values, Values], counts: NDArray[np.int64], rng: np.random.Generator
) -> float:
    """Return how often exchanged answers give a difference as large, the given ones counted among them."""
    twice, first, second = np.tile(groups, 2), np.concatenate(answers), np.concatenate(answers[::-1])

    def difference(kept: NDArray[np.int64]) -> Values:
        both = np.concatenate([kept, counts - kept], axis=1)
        return _worst(twice, second, both) - _worst(twice, first, both)

    # A difference that is equal but for rounding is as large.
    found = abs(float(difference(counts[None])[0])) - 1e-12
    num_as_large = 0
    for number in _portions(2 * len(counts)):
        kept = rng.binomial(counts, 0.5, size=(number, len(counts)))
        num_as_large += int((np.abs(difference(kept)) >= found).sum())
    return (1 + num_as_large) / (1 + NUM_RESAMPLES)


def _portions(num_values: int) -> list[int]:
    at_once = max(1, VALUES_AT_ONCE // num_values)
    return [min(at_once, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, at_once)]


def _worst(groups: Groups, values: Values, counts: NDArray[np.int64]) -> Values:
    """Return the lowest mean of a group in every draw; a group that was not drawn does not count.

    Shape:
        groups, values: `(answers,)`; counts, how often each was drawn: `(draws, answers)`; result: `(draws,)`.
    """
    members = (groups[:, None] == np.unique(groups)).astype(np.float64)
    there, right = counts @ members, (counts * values) @ members
    means = np.divide(right, there, out=np.full(there.shape, np.inf), where=there > 0)
    return np.asarray(means.min(axis=1))
