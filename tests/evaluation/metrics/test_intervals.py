"""Intervals and paired tests, against closed forms, another library's numbers, and how often they hold."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mobileclip.evaluation import paired_difference, proportion_interval
from tests.errors import fails
from tests.lazily import lazily

stats = lazily("scipy.stats")


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 26), (3, 26), (26, 26), (817, 1000), (31_000, 50_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_an_interval_of_a_share_is_the_one_of_scipy(hits, total, confidence):
    found = proportion_interval(hits, total, confidence=confidence)
    expected = stats.binomtest(hits, total).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_hits_in_part_lie_between_whole_ones():
    ends = [proportion_interval(hits, 20) for hits in (7, 7.5, 8)]
    assert ends[0].low < ends[1].low < ends[2].low
    assert ends[0].high < ends[1].high < ends[2].high


def test_no_interval_of_what_is_no_share():
    for hits, total, confidence in ((1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (math.nan, 5, 0.95), (1, 5, 95)):
        with fails(ValueError):
            proportion_interval(hits, total, confidence=confidence)


def answers(both, lost, won, neither):
    return [1] * (both + lost) + [0] * (won + neither), [1] * both + [0] * lost + [1] * won + [0] * neither


@given(lost=st.integers(0, 60), won=st.integers(0, 60), both=st.integers(0, 5), neither=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_difference_lies_in_its_interval_whichever_way_it_is_asked(lost, won, both, neither):
    before, after = answers(both, lost, won, neither)
    found, turned = paired_difference(before, after), paired_difference(after, before)
    assert found.num_questions == len(before)
    assert found.difference == pytest.approx((won - lost) / len(before))
    assert -1 <= found.interval.low <= found.difference <= found.interval.high <= 1
    assert (turned.interval.low, turned.interval.high) == pytest.approx((-found.interval.high, -found.interval.low))


def test_the_interval_of_a_difference_is_that_of_the_formula():
    """Worked by hand: 20 questions, 12 right before and 16 after, 11 of them the same; half a question more of each."""
    found = paired_difference(*answers(11, 1, 5, 3))
    lost, won = 1.5 / 22, 5.5 / 22
    spread = 1.959964 * math.sqrt((lost + won - (won - lost) ** 2) / 22)
    assert found.difference == pytest.approx(0.2)
    assert (found.interval.low, found.interval.high) == pytest.approx((won - lost - spread, won - lost + spread))


def test_the_interval_of_a_difference_holds_the_true_one_as_often_as_it_says():
    """Over every outcome of 14 questions, each as likely as it is."""
    held = 0.0
    for counts in itertools.product(range(15), repeat=4):  # both, lost, won, neither
        if sum(counts) == 14:
            interval = paired_difference(*answers(*counts)).interval
            if interval.low <= 0.25 - 0.1 <= interval.high:
                held += float(stats.multinomial.pmf(counts, 14, (0.45, 0.1, 0.25, 0.2)))
    assert 0.93 < held < 0.985


def test_fractions_have_the_interval_of_a_bootstrap():
    rng = np.random.default_rng(5)
    before = rng.integers(0, 11, 60) / 10
    after = np.clip(before + rng.normal(0.08, 0.2, 60), 0, 1)
    found = paired_difference(before, after)
    drawn = stats.bootstrap((after - before,), np.mean, method="percentile", rng=np.random.default_rng(0))
    expected = drawn.confidence_interval
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert found == paired_difference(before.tolist(), after.tolist())
    found = paired_difference([0.5] * 10, [0.5] * 10)  # models that answer alike are not known to be equal
    assert (found.difference, found.interval.low < -0.15, found.interval.high > 0.15) == (0, True, True)


def test_what_cannot_be_compared_is_refused():
    for before, after in (([], []), ([1, 0], [1]), ([[1]], [[1]]), ([math.nan], [1])):
        with fails(ValueError):
            paired_difference(before, after)
