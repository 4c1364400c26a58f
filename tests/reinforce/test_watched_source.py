"""A source that another thread works on."""

import threading

import pytest

from mobileclip.reinforce.worker import WatchedSource
from tests.errors import fails


def test_what_works_on_a_source_is_waited_for_to_its_end_alone():
    may_go_on = threading.Event()
    source = WatchedSource([1, 2, 3])

    def work():
        found = list(source)
        assert may_go_on.wait(30)
        return sum(found)

    outcome = source.pass_to(work)
    assert not outcome.done()
    may_go_on.set()
    assert outcome.result(30) == 6


def test_what_it_raises_before_the_end_is_raised_and_what_comes_later_is_its_result():
    def stumble(source, until):
        for one in source:
            if one == until:
                raise LookupError(f"on {one}")
        raise LookupError("at the end")

    source = WatchedSource([1, 2, 3])
    with fails(LookupError, "on 1"):
        source.pass_to(lambda: stumble(source, 1))
    later = WatchedSource([1, 2, 3])
    with fails(LookupError, "at the end"):
        later.pass_to(lambda: stumble(later, None)).result(30)
    # Work that reads nothing is waited for.
    assert WatchedSource([1]).pass_to(lambda: "done").result(0) == "done"


def test_an_interrupted_wait_ends_the_work_at_the_next_one(monkeypatch):
    taken, is_amidst = [], threading.Event()
    source = WatchedSource(range(1000))

    def interrupted():
        assert is_amidst.wait(30)
        raise KeyboardInterrupt

    def work():
        for one in source:
            taken.append(one)
            if len(taken) == 3:
                is_amidst.set()
                assert source._stopped.wait(30)

    monkeypatch.setattr(source._ended, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.pass_to(work)
    assert taken == [0, 1, 2]
