"""Signals to a command, raised here: what it says, with which status it leaves, and who else hears them."""

# ruff: noqa: PT012  a signal comes in the middle of something

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from mobileclip.terminal import interruption
from mobileclip.terminal.interruption import (
    Interrupted,
    ending,
    interruptible,
    leave_to_parent,
    postponed,
    save_for_parent,
    serve_loader,
)
from tests.descendants import wait_until_gone
from tests.waiting import wait_for

ALL = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]


@contextmanager
def command(kept: str = "nothing"):
    """A command in a program that goes on."""
    with interruptible("x", kept, is_program=False):
        yield


@pytest.fixture(autouse=True)
def _heard_by_nobody():
    before = [signal.getsignal(number) for number, _ in ALL]
    yield
    assert [signal.getsignal(number) for number, _ in ALL] == before


@pytest.mark.parametrize(("number", "status"), ALL)
def test_a_command_says_what_is_kept_and_leaves_with_the_signals_status(capsys, number, status):
    with pytest.raises(SystemExit) as left, command("finished shards are kept"):
        signal.raise_signal(number)
    assert left.value.code == status
    assert left.value.__suppress_context__
    assert capsys.readouterr() == ("", f"x: interrupted by {number.name}; finished shards are kept\n")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Interrupted(signal.SIGTERM, "stopped after step 3"), 143, "x: interrupted by SIGTERM; stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "x: interrupted by SIGINT; all is kept\n"),
        (SystemExit(1), 1, ""),
    ],
    ids=repr,
)
def test_what_ends_a_command_gives_its_status(capsys, error, status, said):
    with pytest.raises(SystemExit) as left, command("all is kept"):
        raise error
    assert (left.value.code, capsys.readouterr().err) == (status, said)


ERRORS = [OSError(errno.ENOSPC, "no space left"), ValueError("own"), RuntimeError("own"), AssertionError("own")]


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_behind_a_signal_stays_an_error(capfd, number, error):
    """Told as the signal, a full disk would be tried again without end: 75 means that."""
    with pytest.raises(type(error)) as left, command("all is kept"), postponed():
        if number is not None:
            signal.raise_signal(number)
        raise error
    assert left.value is error
    assert "interrupted" not in capfd.readouterr().err


def test_an_error_while_a_signal_is_tidied_up_behind_is_an_error_too(capsys):
    with pytest.raises(OSError, match="no space left") as left, command("all is kept"):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise OSError("no space left")
    assert isinstance(left.value.__context__, Interrupted)
    assert capsys.readouterr().err == ""


def test_what_a_library_makes_of_a_signal_is_the_signal(capsys):
    with pytest.raises(SystemExit) as left, command("all is kept"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise RuntimeError("a library's own") from interrupt
    assert left.value.code == 143
    assert capsys.readouterr().err == "x: interrupted by SIGTERM; all is kept\n"


def test_a_signal_waits_for_the_end_of_a_step(capfd):
    requested = []
    with pytest.raises(SystemExit) as left, command(), postponed() as signals:
        requested.append(signals.requested)
        signal.raise_signal(signal.SIGTERM)
        requested.append(signals.requested)
        signals.stop("stopped after step 1")
    assert (left.value.code, requested) == (143, [False, True])
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines == [
        "SIGTERM: stopping after this step; a second signal stops at once",
        "x: interrupted by SIGTERM; stopped after step 1",
    ]


def test_what_may_be_cut_short_is_and_what_nobody_asked_for_comes_at_the_end():
    seen, cut = [], []
    with pytest.raises(SystemExit), command(), postponed() as signals:
        for _ in range(2):  # a signal that came before counts too
            with suppress(Interrupted), signals.not_now():
                seen.append("begun")
                signal.raise_signal(signal.SIGINT)
                seen.append("the signal comes first")
            cut.append(signals.requested)
    assert (seen, cut) == (["begun"], [True, True])
    with pytest.raises(Interrupted), postponed(), postponed():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted), postponed() as signals, signals.not_now(), postponed():
        signal.raise_signal(signal.SIGINT)
        seen.append("saved")
    assert seen == ["begun", "saved"], "what must not be cut short is not, inside of what may"


@pytest.fixture
def exits(monkeypatch):
    """What a second signal, a good while after the first, leaves with."""
    found = []
    monkeypatch.setattr(os, "_exit", found.append)
    return found


@pytest.fixture
def wait(monkeypatch):
    """Let the clock go on by seconds."""
    waited, clock = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(waited))
    return waited.append


def test_a_second_signal_leaves_at_once_but_not_the_launchers_copy(exits, wait):
    seen = []
    with pytest.raises(SystemExit), command(), postponed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        seen.append(list(exits))
        wait(1.1)
        signal.raise_signal(signal.SIGTERM)
        seen.append(list(exits))
    assert seen == [[], [143]]


def test_a_schedulers_warning_does_not_count_as_a_person_who_insists(capsys, exits, wait):
    """It may come twice, and SIGTERM after it is the end that it warned of: the state is being saved all the while."""
    seen = []
    with pytest.raises(SystemExit) as ended, command(), postponed() as signals:
        signal.raise_signal(signal.SIGUSR1)
        seen.append(signals.warned)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            wait(1.1)
            signal.raise_signal(number)
        seen.append(list(exits))
        wait(1.1)
        signal.raise_signal(signal.SIGTERM)
        seen.append(list(exits))
        signals.stop("saved", warned=True)
    assert (ended.value.code, seen) == (75, [True, [], [143]])
    with pytest.raises(SystemExit) as ended, command(), postponed() as signals:
        assert not signals.warned
        signals.stop("saved", warned=True)
    assert ended.value.code == 75, "all processes leave as the one that was warned"
    assert capsys.readouterr().err.endswith("x: interrupted by SIGUSR1; saved\n")


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


@pytest.mark.parametrize("when", [nullcontext, postponed], ids=["at once", "after a step"])
def test_only_the_first_process_speaks(capfd, monkeypatch, when):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as left, command(), when():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143
    assert capfd.readouterr().err == ""


def work(number: int) -> int:
    time.sleep(number)
    return number


def test_the_processes_of_a_pool_end_with_what_they_were_for():
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with (
        pytest.raises(Interrupted),
        ProcessPoolExecutor(1, mp_context=context, initializer=leave_to_parent) as pool,
        ending(pool) as submit,
    ):
        assert submit(work, 0).result() == 0
        for _ in range(3):
            submit(work, 60)
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


HANGING = """
import signal, threading, time
from mobileclip.terminal import interruption
from mobileclip.terminal.interruption import interruptible
interruption._TIDYING_SECONDS = 0.5
with interruptible("x", "all is kept"):
    thread = threading.Thread(target=time.sleep, args=(120,))
    thread.start()
    try:
        print("ready", flush=True)
        time.sleep(120)  # and not in join(), after which Python takes the thread for ended
    finally:
        {tidying}
"""


TIDYING = ["thread.join()", "pass"]
HANGING_AFTER = [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)]


@pytest.fixture(scope="module")
def left():
    """What becomes of programs that hang after a signal, all at once since each waits for seconds."""
    pipe = subprocess.PIPE
    processes = {
        (tidying, number): subprocess.Popen(
            [sys.executable, "-c", HANGING.format(tidying=tidying)], stdout=pipe, stderr=pipe, text=True
        )
        for tidying in TIDYING
        for number, _ in HANGING_AFTER
    }
    try:
        said = [process.stdout.readline() for process in processes.values()]
        started = time.monotonic()
        for (_, number), process in processes.items():
            process.send_signal(number)
        ended = {key: (process.communicate(timeout=60)[1], process.returncode) for key, process in processes.items()}
        seconds = time.monotonic() - started
    finally:
        for process in processes.values():
            process.kill()
    assert said == ["ready\n"] * len(processes)
    return ended, seconds


@pytest.mark.parametrize("tidying", TIDYING, ids=["tidying hangs", "a thread is left at the end"])
@pytest.mark.parametrize(("number", "status"), HANGING_AFTER)
def test_what_hangs_after_a_signal_does_not_keep_the_program(left, tidying, number, status):
    ended, seconds = left
    assert ended[tidying, number] == (f"x: interrupted by {number.name}; all is kept\n", status)
    assert seconds < 12
    assert interruption._TIDYING_SECONDS < 10, "Docker kills after so many"


LEAVING_CHILDREN = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from mobileclip.terminal.interruption import {initializer}
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer={initializer}) as pool:
        pool.submit(time.sleep, 0).result()
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        pool.submit(time.sleep, 120).result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("initializer", ["leave_to_parent", "save_for_parent"])
def test_a_process_ends_with_a_command_that_is_killed(initializer, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LEAVING_CHILDREN.format(initializer=initializer))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        children = {int(pid) for pid in process.stdout.readline().split()}
        assert children
        process.kill()
    wait_until_gone(children)


def fail_after_a_signal(ready) -> None:
    with postponed() as signals:
        Path(ready).touch()
        wait_for(lambda: signals.requested)
        raise OSError(errno.ENOSPC, "no space left")


def test_what_a_process_could_not_save_for_its_command_is_an_error(tmp_path):
    ready = tmp_path / "ready"
    with (
        pytest.raises(OSError, match="no space left"),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=save_for_parent) as pool,
        ending(pool) as submit,
    ):
        submit(fail_after_a_signal, str(ready))
        wait_for(ready.exists)
        raise Interrupted(signal.SIGTERM)
