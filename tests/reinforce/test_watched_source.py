"""A source that another thread works on."""

import threading

import pytest

from mobileclip.reinforce.worker import WatchedSource


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
    source = WatchedSource([1, 2, 3])

    def stumble():
        for one in source:
            raise LookupError(f"on {one}")

    with pytest.raises(LookupError, match="on 1"):
        source.pass_to(stumble)

    later = WatchedSource([1, 2, 3])

    def end_badly():
        list(later)
        raise LookupError("at the end")

    with pytest.raises(LookupError, match="at the end"):
        later.pass_to(end_badly).result(30)


def test_work_that_reads_nothing_is_waited_for():
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
