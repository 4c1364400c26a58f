"""How far, how fast and how long: numbers of a clock that the test moves."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mobileclip.progress import SECONDS_BETWEEN_LINES, Progress, track


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


def lines(screen):
    return screen.file.getvalue().splitlines()


def test_speed_and_time_left_are_those_of_what_was_done_here(clock):
    with Progress("embedding", total=20, done=5, console=None) as bar:
        assert bar.state == "0.0 samples/s"
        clock.now += 10
        bar.advance(5)
        assert (bar.done, bar.state) == (10, "0.5 samples/s"), "one step is no pace"
        for _ in range(4):
            clock.now += 2
            bar.advance()
        assert (bar.done, bar.state) == (14, "0.5 samples/s, 0:12 left")
        bar.advance(6)
        assert bar.state == "0.8 samples/s", "of what is done, nothing is left"


def test_a_step_of_several_units_counts_all_of_them_for_the_speed_alone(clock):
    with Progress("training", total=4, unit="images", console=None) as bar:
        bar.expect(8)
        for _ in range(5):
            clock.now += 2
            bar.advance(count=3000)
        assert (bar.done, bar.state) == (5, "1,500.0 images/s, 0:06 left")


def test_without_a_total_there_is_no_time_left_until_there_is_one(clock):
    with Progress("reading", total=None, console=None) as bar:
        for _ in range(5):
            clock.now += 2
            bar.advance()
        assert bar.state == "0.5 samples/s"
        bar.expect(9)
        assert bar.state == "0.5 samples/s, 0:08 left"


def test_elsewhere_than_in_a_terminal_a_line_comes_now_and_then_and_at_the_end(clock, screen):
    with Progress("indexing", total=4, console=screen) as bar:
        clock.now += SECONDS_BETWEEN_LINES
        bar.advance()
        assert lines(screen) == []
        clock.now += 1
        bar.advance(detail="loss 0.5")
        assert lines(screen) == ["indexing: 2/4, loss 0.5, 0.1 samples/s"]
        clock.now += 1
        bar.advance()
        assert len(lines(screen)) == 1
        bar.advance()
    assert lines(screen)[1:] == ["indexing: 4/4, 0.2 samples/s"]
    with Progress("indexing", total=None, console=screen) as bar:
        clock.now += 2 * SECONDS_BETWEEN_LINES
        bar.advance(3)
    assert lines(screen)[2:] == ["indexing: 3, 0.1 samples/s"]


def test_items_are_counted_as_they_are_worked_through(capsys, clock):
    worked = []
    for item in track("abc", total=3, title="reading", unit="shards"):
        clock.now += 1
        worked.append(item)
    assert worked == ["a", "b", "c"]
    assert capsys.readouterr().err == "reading: 3/3, 1.0 shards/s\n"
    assert list(track("abc", total=3, title="reading", shown=False)) == worked
    assert capsys.readouterr().err == ""


def test_in_the_first_seconds_no_time_left_is_told_however_fast_they_are(clock):
    with Progress("reading", total=1000, console=None) as bar:
        for _ in range(29):
            clock.now += 0.1
            bar.advance()
            assert "left" not in bar.state
        clock.now += 0.2
        bar.advance()
        assert bar.state.endswith("1:37 left")


def test_lines_of_a_long_job_come_ever_more_slowly(clock, screen):
    with Progress("training", total=100_000, console=screen) as bar:
        for _ in range(86_400 // 5):
            clock.now += 5
            bar.advance()
    assert 100 < len(lines(screen)) < 700
