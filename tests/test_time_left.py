"""How long the rest takes, as it is said in the course of real jobs: on a clock of the test's own."""

import itertools
import re
from types import SimpleNamespace

import pytest

from mobileclip.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    moved = SimpleNamespace(now=1000.0)
    moved.monotonic = lambda: moved.now
    monkeypatch.setattr("mobileclip.progress.time", moved)
    return moved


def told(clock, seconds, *, done=0):
    """Return what is said after every step: how long the rest takes, None where nothing is said, and the truth."""
    said = []
    with Progress("x", total=done + len(seconds), done=done, console=None) as progress:
        for index, one in enumerate(seconds):
            clock.now += one
            progress.advance()
            found = re.search(r"([\d:]+) left", progress.state)
            left = None
            if found:
                left = sum(60**place * int(part) for place, part in enumerate(reversed(found[1].split(":"))))
            said.append((left, sum(seconds[index + 1 :])))
    return said


@pytest.mark.parametrize(
    ("seconds", "done"),
    [
        ([60.0] + [0.06] * 1000, 0),
        ([90.0, 5.0, 1.0] + [0.5] * 120, 0),
        ([25.0] + [0.02] * 3000, 40_000),
        ([20.0, 20.0] + [1.0] * 60, 7),
    ],
    ids=["compilation", "warm-up", "a shard is opened where a run goes on", "two slow workers"],
)
def test_a_slow_beginning_is_not_taken_for_the_pace(clock, seconds, done):
    said = [(left, true) for left, true in told(clock, seconds, done=done) if left is not None]
    assert len(said) > len(seconds) / 2
    assert all(left <= 3 * true + 10 for left, true in said)


@pytest.mark.parametrize(
    "seconds",
    [[2.0] * 50, [0.01] * 2000, [0.5, 1.5] * 40, [300.0] * 12],
    ids=["steps", "many steps", "long and short ones in turn", "few long ones"],
)
def test_a_steady_job_is_told_as_it_is(clock, seconds):
    spoken = [(left, true) for left, true in told(clock, seconds) if left is not None]
    in_the_first_seconds = sum(at < 3 for at in itertools.accumulate(seconds))
    assert len(spoken) >= len(seconds) - 4 - in_the_first_seconds
    assert all(0.45 * true - 3 <= left <= 1.6 * true + 3 for left, true in spoken)
    assert all(0.7 * true - 3 <= left <= 1.4 * true + 3 for left, true in spoken[8:])
    assert spoken[-1][0] <= 1.5 * max(seconds) + 1


def test_a_job_that_becomes_slower_is_noticed(clock):
    said = told(clock, [0.1] * 200 + [2.0] * 200)
    left, true = said[300]
    assert left >= 0.7 * true


def test_steps_that_are_done_together_count_as_many(clock):
    """The first of 64 results that come together took as long as all of them; in the middle of them, too."""
    said = []
    with Progress("x", total=1408, console=None) as progress:
        for batch in range(22):
            clock.now += 3.0
            for one in range(64):
                clock.now += 0.001
                progress.advance()
                said.append((progress.state, 3.0 * (21 - batch) + 0.001 * (63 - one)))
    times = [(re.search(r"(\d+):(\d+) left", state), true) for state, true in said]
    spoken = [(60 * int(found[1]) + int(found[2]), true) for found, true in times if found]
    assert len(spoken) > 1000
    assert all(0.8 * true - 1 <= left <= 1.3 * true + 4 for left, true in spoken)


def test_steps_that_count_nothing_are_none(clock):
    with Progress("x", total=4, console=None) as progress:
        for _ in range(4):
            clock.now += 10
            progress.advance(0, count=8)
        assert progress.state == "0.8 samples/s"


def test_long_pauses_between_two_looks_do_not_end_the_estimate(clock):
    said = told(clock, list(itertools.chain([0.05] * 500, [30.0], [0.05] * 500)))
    left, true = said[600]
    assert left <= 3 * true + 40


def test_durations():
    assert [duration(one) for one in (0.4, 59.6, 61, 3600, 3725)] == ["0:00", "1:00", "1:01", "1:00:00", "1:02:05"]
