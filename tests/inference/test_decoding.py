"""Threads that work ahead: in order, no further than asked, and with nothing lost."""

import threading
from itertools import islice

import pytest

from mobileclip.data import BadSampleError
from mobileclip.inference.encoding import decode_ahead


def test_results_are_in_order_whatever_finishes_first():
    """The first item is not done before the others are."""
    others = threading.Barrier(3)

    def decode(number):
        if number < 3:
            others.wait(timeout=10)  # three at once: as many threads are at work
        return number * number

    items = list(range(20))
    assert list(decode_ahead(items, decode, ahead=5, num_threads=3)) == [(n, n * n) for n in items]


@pytest.mark.parametrize("weigh", [1, 3])
def test_no_more_waits_than_asked_for(weigh):
    drawn = []

    def source():
        for number in range(50):
            drawn.append(number)
            yield number

    most = -(-9 // weigh)  # the last one may lean over the edge
    for number, _ in decode_ahead(source(), str, ahead=9, weigh=lambda _: weigh, num_threads=2):
        assert len(drawn) == min(number + most, 50)
    assert len(drawn) == 50


def test_one_item_may_weigh_more_than_all_that_may_wait():
    assert [result for _, result in decode_ahead([1, 2, 3], str, ahead=2, weigh=lambda _: 99)] == ["1", "2", "3"]


def test_bad_samples_are_results_and_other_errors_are_raised():
    def decode(number):
        if number == 1:
            raise BadSampleError("broken", "one is")
        return 12 // (number - 3)

    results = decode_ahead(range(5), decode, ahead=2, num_threads=1)
    outcomes = [outcome for _, outcome in islice(results, 3)]
    assert outcomes[::2] == [-4, -12]
    assert (outcomes[1].reason, outcomes[1].detail) == ("broken", "one is")
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_early_leaves_no_work_behind():
    before, begun = set(threading.enumerate()), []

    def decode(number):
        begun.append(number)
        return number

    results = decode_ahead(range(1000), decode, ahead=10, num_threads=1)
    next(results)
    results.close()
    assert len(begun) <= 11
    assert set(threading.enumerate()) <= before
