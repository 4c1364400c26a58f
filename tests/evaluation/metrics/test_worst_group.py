"""The worst group: an interval that holds as often as it says, and a test that tries every exchange."""

import itertools

import numpy as np
import pytest

from mobileclip.evaluation import paired_difference, proportion_interval
from mobileclip.evaluation.metrics import paired_worst_group, worst_group_interval
from tests.lazily import lazily

stats = lazily("scipy.stats")


def worst(groups, values):
    return min(values[groups == group].mean() for group in np.unique(groups))


def test_an_interval_by_hand():
    groups, values = np.repeat([0, 3, 7], [50, 20, 4]), np.repeat([1.0, 0, 1, 0, 1, 0], [30, 20, 13, 7, 3, 1])
    found = worst_group_interval(groups, values)
    assert found.low == proportion_interval(3, 4).low < proportion_interval(30, 50).low
    assert found.high == proportion_interval(30, 50, confidence=1 - 0.05 / 3).high
    one = worst_group_interval(groups[:50] + 2, values[:50])
    assert one == proportion_interval(30, 50)


@pytest.mark.parametrize("chances", [(0.6,) * 6, (0.4, 0.6, 0.6, 0.6, 0.6, 0.9)])
def test_an_interval_holds_the_worst_of_several_at_least_as_often_as_it_says(chances):
    rng, groups = np.random.default_rng(3), np.repeat(np.arange(6), 40)
    held, naive = 0, 0
    for _ in range(1_000):
        values = (rng.random(240) < np.asarray(chances)[groups]).astype(float)
        found = worst_group_interval(groups, values)
        held += found.low <= min(chances) <= found.high
        least = worst(groups, values)
        assert found.low <= least <= found.high
        naive += proportion_interval(round(40 * least), 40).high >= min(chances)
    assert held >= 950
    # What Wilson's interval of the group that happens to be the worst does not do.
    assert naive < 950 or len(set(chances)) > 1


def test_answers_are_exchanged_as_one_by_one():
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 4, 4, 4])
    before = np.array([1, 0, 0, 1, 1, 0, 0, 1, 1, 0.5])
    after = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 1.0])
    found = paired_worst_group(groups, before, after)
    difference = worst(groups, after) - worst(groups, before)
    assert found.difference == pytest.approx(difference)
    assert found.num_questions == 10
    as_large = [
        abs(worst(groups, np.where(kept, after, before)) - worst(groups, np.where(kept, before, after)))
        >= difference - 1e-9
        for kept in itertools.product([False, True], repeat=10)
    ]
    assert found.p_value == pytest.approx(np.mean(as_large), abs=0.02)
    assert found.interval.low <= difference <= found.interval.high
    assert found == paired_worst_group(groups, before, after)


def test_the_interval_of_a_difference_is_the_bootstrap_of_scipy():
    rng, groups = np.random.default_rng(0), np.arange(300) % 3
    before = (rng.random(300) < np.array([0.3, 0.6, 0.8])[groups]).astype(float)
    after = np.where(rng.random(300) < 0.2, 1.0, before)
    found = paired_worst_group(groups, before, after)
    drawn = stats.bootstrap(
        (groups, before, after), lambda g, b, a: worst(g, a) - worst(g, b), paired=True, vectorized=False,
        method="percentile", n_resamples=1_500, rng=rng,
    )  # fmt: skip
    expected = drawn.confidence_interval
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=0.015)
    assert found.p_value < 0.001


def test_models_that_answer_alike_are_not_known_to_be_equal():
    groups, values = np.repeat([0, 1], 10), np.repeat([1.0, 0, 1], [4, 6, 10])
    found = paired_worst_group(groups, values, values)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.interval == paired_difference(values[:10], values[:10]).interval
