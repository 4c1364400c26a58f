"""Signals to a command, raised here: what it says, with which status it leaves, and who else hears them."""

# ruff: noqa: PT012  a signal comes in the middle of something

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest

from mobileclip.terminal import interruption
from mobileclip.terminal.interruption import (
    Interrupted,
    ending,
    interruptible,
    leave_to_parent,
    postponed,
    serve_loader,
)

ALL = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)]


@contextmanager
def command(kept: str = "nothing"):
    """A command in a program that goes on."""
    with interruptible("x", kept, is_program=False):
        yield


@pytest.fixture(autouse=True)
def _heard_by_nobody():
    before = [signal.getsignal(number) for number, _ in ALL]
    hook = sys.unraisablehook
    yield
    assert [signal.getsignal(number) for number, _ in ALL] == before
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(("number", "status"), ALL)
def test_a_command_says_what_is_kept_and_leaves_with_the_signals_status(capsys, number, status):
    with pytest.raises(SystemExit) as left, command("finished shards are kept"):
        signal.raise_signal(number)
    assert left.value.code == status
    assert left.value.__suppress_context__
    assert capsys.readouterr() == ("", f"x: interrupted by {number.name}; finished shards are kept\n")


def test_what_was_raised_knows_better_what_is_kept(capsys):
    with pytest.raises(SystemExit), command():
        raise Interrupted(signal.SIGTERM, "stopped after step 3")
    assert capsys.readouterr().err == "x: interrupted by SIGTERM; stopped after step 3\n"


def test_an_ordinary_interrupt_is_ctrl_c(capsys):
    with pytest.raises(SystemExit) as left, command():
        raise KeyboardInterrupt
    assert left.value.code == 130
    assert "SIGINT" in capsys.readouterr().err


def test_without_a_signal_errors_and_handlers_are_as_before():
    with pytest.raises(ValueError, match="own"), command():
        raise ValueError("own")
    with pytest.raises(SystemExit) as left, command():
        sys.exit(1)
    assert left.value.code == 1


def test_what_breaks_behind_a_signal_is_the_signals(capsys):
    """A worker that died of the same signal, say; but what could not be saved must be said."""
    with pytest.raises(SystemExit) as left, command("all is kept"), postponed():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("a worker is gone")
    assert left.value.code == 143
    assert capsys.readouterr().err.endswith("x: interrupted by SIGTERM; all is kept\n")
    with pytest.raises(SystemExit), command("all is kept"), postponed():
        signal.raise_signal(signal.SIGTERM)
        raise OSError("the checkpoint could not be written")
    assert capsys.readouterr().err.endswith("x: interrupted by SIGTERM; the checkpoint could not be written\n")


def test_a_signal_waits_for_the_end_of_a_step(capfd):
    done = []
    with pytest.raises(SystemExit) as left, command(), postponed() as signals:
        assert not signals.requested
        signal.raise_signal(signal.SIGTERM)
        done.append("step")
        assert signals.requested
        signals.stop("stopped after step 1")
    assert (left.value.code, done) == (143, ["step"])
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines == [
        "SIGTERM: stopping after this step; once more leaves at once",
        "x: interrupted by SIGTERM; stopped after step 1",
    ]


def test_what_may_be_cut_short_is_and_what_nobody_asked_for_comes_at_the_end():
    with pytest.raises(SystemExit), command(), postponed() as signals:
        with pytest.raises(Interrupted), signals.not_now():
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the signal comes first")
        assert signals.requested
        with pytest.raises(Interrupted), signals.not_now():
            raise AssertionError("a signal that came before counts too")
    with pytest.raises(Interrupted), postponed(), postponed():
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_leaves_at_once_but_not_the_launchers_copy(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(interruption, "_ONE_SIGNAL_SECONDS", 0.05)
    with pytest.raises(SystemExit), command(), postponed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert not left
        time.sleep(0.06)
        signal.raise_signal(signal.SIGTERM)
        assert left == [143]


def test_a_schedulers_warning_does_not_count_as_a_person_who_insists(monkeypatch):
    """It may come twice, and SIGTERM after it is the end that it warned of: the state is being saved all the while."""
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(interruption, "_ONE_SIGNAL_SECONDS", 0.05)
    with pytest.raises(SystemExit) as ended, command(), postponed() as signals:
        signal.raise_signal(signal.SIGUSR1)
        assert signals.warned
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            time.sleep(0.06)
            signal.raise_signal(number)
        assert not left
        time.sleep(0.06)
        signal.raise_signal(signal.SIGTERM)
        assert left == [143]
        signals.stop("saved", warned=True)
    assert ended.value.code == 75


def test_all_processes_leave_as_the_one_that_was_warned(capsys):
    with pytest.raises(SystemExit) as left, command(), postponed() as signals:
        assert not signals.warned
        signals.stop("stopped after step 1", warned=True)
    assert left.value.code == 75
    assert capsys.readouterr().err == "x: interrupted by SIGUSR1; stopped after step 1\n"


class Swallowing:
    """Is interrupted where nothing can be raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_came_to_nothing_is_raised_again():
    with pytest.raises(SystemExit) as left, command():
        del Swallowing().__dict__
        for _ in range(1000):
            time.sleep(0.001)
        raise AssertionError("the signal was lost")
    assert left.value.code == 130


def test_other_threads_hear_nothing():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work():
        with command(), postponed() as signals:
            found.append((signal.getsignal(signal.SIGINT) is before, signals.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(True, False)]


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as left, command():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143
    assert capsys.readouterr().err == ""


def work(number: int) -> int:
    time.sleep(number)
    return number


def test_the_processes_of_a_pool_end_with_what_they_were_for():
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with (
        pytest.raises(Interrupted),
        ProcessPoolExecutor(1, mp_context=context, initializer=leave_to_parent) as pool,
        ending(pool),
    ):
        assert pool.submit(work, 0).result() == 0
        for _ in range(3):
            pool.submit(work, 60)
        started = time.monotonic()
        raise Interrupted(signal.SIGINT)
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


def serve(ready) -> None:
    serve_loader(0)
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody says who has sent a signal")
def test_a_loaders_worker_is_ended_by_its_loader_alone():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=serve, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(20)
    other = context.Process(target=os.kill, args=(worker.pid, signal.SIGTERM))
    other.start()
    other.join()
    os.kill(worker.pid, signal.SIGINT)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
