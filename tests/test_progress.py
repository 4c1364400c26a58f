"""How far, how fast and how long: numbers of a clock that the test moves."""

import io
import itertools
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from mobileclip.progress import SECONDS_BETWEEN_LINES, Progress, duration, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    moved = SimpleNamespace(now=1000.0)
    moved.monotonic = lambda: moved.now
    monkeypatch.setattr("mobileclip.progress.time", moved)
    return moved


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


@pytest.fixture
def advance(clock):
    """What lets steps of so many seconds pass."""

    def passed(bar, *seconds, done=1, **choices):
        for one in seconds:
            clock.now += one
            bar.advance(done, **choices)

    return passed


def lines(screen):
    return screen.file.getvalue().splitlines()


def test_speed_and_time_left_are_those_of_what_was_done_here(advance):
    with Progress("embedding", total=20, done=5, console=None) as bar:
        assert bar.state == "0.0 samples/s"
        advance(bar, 10, done=5)
        assert (bar.done, bar.state) == (10, "0.5 samples/s"), "one step is no pace"
        advance(bar, *[2] * 4)
        assert (bar.done, bar.state) == (14, "0.5 samples/s, 0:12 left")
        bar.advance(6)
        assert bar.state == "0.8 samples/s", "of what is done, nothing is left"


def test_a_step_of_several_units_counts_all_of_them_for_the_speed_alone(advance):
    with Progress("training", total=4, unit="images", console=None) as bar:
        bar.expect(8)
        advance(bar, *[2] * 5, count=3000)
        assert (bar.done, bar.state) == (5, "1,500.0 images/s, 0:06 left")
    with Progress("x", total=4, console=None) as bar:
        advance(bar, *[10] * 4, done=0, count=8)
        assert bar.state == "0.8 samples/s", "steps that count nothing are none"


def test_without_a_total_there_is_no_time_left_until_there_is_one(advance):
    with Progress("reading", total=None, console=None) as bar:
        advance(bar, *[2] * 5)
        assert bar.state == "0.5 samples/s"
        bar.expect(9)
        assert bar.state == "0.5 samples/s, 0:08 left"


def test_elsewhere_than_in_a_terminal_a_line_comes_now_and_then_and_at_the_end(advance, screen):
    with Progress("indexing", total=4, console=screen) as bar:
        advance(bar, SECONDS_BETWEEN_LINES)
        assert lines(screen) == []
        advance(bar, 1, detail="loss 0.5")
        assert lines(screen) == ["indexing: 2/4, loss 0.5, 0.1 samples/s"]
        advance(bar, 1)
        assert len(lines(screen)) == 1
        bar.advance()
    assert lines(screen)[1:] == ["indexing: 4/4, 0.2 samples/s"]
    with Progress("indexing", total=None, console=screen) as bar:
        advance(bar, 2 * SECONDS_BETWEEN_LINES, done=3)
    assert lines(screen)[2:] == ["indexing: 3, 0.1 samples/s"]
    with Progress("training", total=100_000, console=screen) as bar:
        advance(bar, *[5] * (86_400 // 5))
    assert 100 < len(lines(screen)) < 700, "lines of a long job come ever more slowly"


def test_items_are_counted_as_they_are_worked_through(capsys, clock):
    worked = []
    for item in track("abc", total=3, title="reading", unit="shards"):
        clock.now += 1
        worked.append(item)
    assert worked == ["a", "b", "c"]
    assert capsys.readouterr().err == "reading: 3/3, 1.0 shards/s\n"
    assert list(track("abc", total=3, title="reading", shown=False)) == worked
    assert capsys.readouterr().err == ""


def test_in_the_first_seconds_no_time_left_is_told_however_fast_they_are(advance):
    with Progress("reading", total=1000, console=None) as bar:
        for _ in range(29):
            advance(bar, 0.1)
            assert "left" not in bar.state
        advance(bar, 0.2)
        assert bar.state.endswith("1:37 left")


# How long the rest takes, as it is said in the course of real jobs.


@pytest.fixture
def told(advance):
    """What returns, of every step, how long the rest takes as it is said, None where nothing is, and the truth."""

    def said(seconds, done=0):
        pairs = []
        with Progress("x", total=done + len(seconds), done=done, console=None) as progress:
            for index, one in enumerate(seconds):
                advance(progress, one)
                found = re.search(r"([\d:]+) left", progress.state)
                parts = reversed(found[1].split(":")) if found else ()
                left = sum(60**place * int(part) for place, part in enumerate(parts))
                pairs.append((left if found else None, sum(seconds[index + 1 :])))
        return pairs

    return said


def spoken(pairs):
    return [(left, true) for left, true in pairs if left is not None]


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
def test_a_slow_beginning_is_not_taken_for_the_pace(told, seconds, done):
    said = spoken(told(seconds, done))
    assert len(said) > len(seconds) / 2
    assert all(left <= 3 * true + 10 for left, true in said)


@pytest.mark.parametrize(
    "seconds",
    [[2.0] * 50, [0.01] * 2000, [0.5, 1.5] * 40, [300.0] * 12],
    ids=["steps", "many steps", "long and short ones in turn", "few long ones"],
)
def test_a_steady_job_is_told_as_it_is(told, seconds):
    said = spoken(told(seconds))
    in_the_first_seconds = sum(at < 3 for at in itertools.accumulate(seconds))
    assert len(said) >= len(seconds) - 4 - in_the_first_seconds
    assert all(0.45 * true - 3 <= left <= 1.6 * true + 3 for left, true in said)
    assert all(0.7 * true - 3 <= left <= 1.4 * true + 3 for left, true in said[8:])
    assert said[-1][0] <= 1.5 * max(seconds) + 1


def test_a_job_that_becomes_slower_is_noticed_and_a_long_pause_does_not_end_the_estimate(told):
    left, true = told([0.1] * 200 + [2.0] * 200)[300]
    assert left >= 0.7 * true
    left, true = told([0.05] * 500 + [30.0] + [0.05] * 500)[600]
    assert left <= 3 * true + 40


def test_steps_that_are_done_together_count_as_many(told):
    """The first of 64 results that come together took as long as all of them; in the middle of them, too."""
    said = spoken(told(([3.001] + [0.001] * 63) * 22))
    assert len(said) > 1000
    assert all(0.8 * true - 1 <= left <= 1.3 * true + 4 for left, true in said)


def test_durations():
    assert [duration(one) for one in (0.4, 59.6, 61, 3600, 3725)] == ["0:00", "1:00", "1:01", "1:00:00", "1:02:05"]
