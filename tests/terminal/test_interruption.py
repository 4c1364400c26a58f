"""Signals to a command, raised here: what it says, with which status it leaves, and who else hears them."""

# ruff: noqa: PT012  a signal comes in the middle of something

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import product
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1, raise_signal

import pytest

from mobileclip.terminal import interruption
from mobileclip.terminal.interruption import Interrupted, ending, interruptible, postponed
from tests.descendants import wait_until_gone
from tests.waiting import wait_for

STATUSES = {SIGINT: 130, SIGTERM: 143, SIGHUP: 129, SIGUSR1: 75}
FORK = multiprocessing.get_context("fork")
FULL = OSError(errno.ENOSPC, "no space left")
# A command in a program that goes on.
command = partial(interruptible, "x", "all is kept", is_program=False)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes and senders are known on Linux alone")


@contextmanager
def ends(status):
    """Assert the exit status of a command whose block ends it."""
    with pytest.raises(SystemExit) as left, command():
        yield
    assert left.value.code == status


@pytest.fixture(autouse=True)
def _heard_by_nobody():
    before = [*map(signal.getsignal, STATUSES)]
    yield
    assert [*map(signal.getsignal, STATUSES)] == before


def fail(error):
    raise error


def wrap_interrupt():
    """End as a library that makes an error of its own of a signal."""
    try:
        raise_signal(SIGTERM)
    except KeyboardInterrupt as interrupt:
        raise RuntimeError("a library's own") from interrupt


@pytest.mark.parametrize(
    ("act", "status", "said"),
    [
        *((partial(raise_signal, one), status, f"{one.name}; all is kept") for one, status in STATUSES.items()),
        (partial(fail, Interrupted(SIGTERM, "stopped after step 3")), 143, "SIGTERM; stopped after step 3"),
        (partial(fail, KeyboardInterrupt()), 130, "SIGINT; all is kept"),
        (partial(fail, SystemExit(1)), 1, ""),
        (wrap_interrupt, 143, "SIGTERM; all is kept"),
    ],
)
def test_what_ends_a_command_gives_its_status(capsys, act, status, said):
    with ends(status):
        act()
    assert capsys.readouterr() == ("", f"x: interrupted by {said}\n" if said else "")


@pytest.mark.parametrize("number", [None, SIGTERM, SIGUSR1])
@pytest.mark.parametrize("error", [FULL, ValueError("own"), RuntimeError("own"), AssertionError("own")], ids=repr)
@pytest.mark.parametrize("when", [nullcontext, postponed], ids=["at once", "after a step"])
def test_an_error_behind_a_signal_or_while_it_is_tidied_up_stays_an_error(capfd, number, error, when):
    """Told as the signal, a full disk would be tried again without end: 75 means that."""
    with pytest.raises(type(error)) as left, command(), when():
        try:
            if number is not None:
                raise_signal(number)
        finally:
            fail(error)
    assert left.value is error
    assert "interrupted" not in capfd.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_waits_for_the_end_of_a_step_and_the_first_process_says_so(capfd, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    with ends(143), postponed() as signals:
        assert not signals.requested
        raise_signal(SIGTERM)
        assert signals.requested
        signals.stop("stopped after step 1")
    said = capfd.readouterr().err.split("\n")
    assert said[-2:] == (["x: interrupted by SIGTERM; stopped after step 1", ""] if rank == "0" else [""])
    assert said[1:2] == (["SIGTERM: stopping after this step; a second signal stops at once"] if rank == "0" else [])


def test_what_may_be_cut_short_is_and_what_nobody_asked_for_comes_at_the_end():
    seen, cut = [], []
    with ends(130), postponed() as signals:
        for _ in range(2):  # a signal that came before counts too
            with suppress(Interrupted), signals.not_now():
                seen.append("begun")
                raise_signal(SIGINT)
                seen.append("the signal comes first")
            cut.append(signals.requested)
    assert (seen, cut) == (["begun"], [True, True])
    with pytest.raises(Interrupted), postponed(), postponed():
        raise_signal(SIGINT)
    with pytest.raises(Interrupted), postponed() as signals, signals.not_now(), postponed():
        raise_signal(SIGINT)
        seen.append("saved")
    assert seen == ["begun", "saved"], "what must not be cut short is not, inside of what may"


@pytest.fixture
def insist(monkeypatch):
    """Raise signals, each a good while after the one before, and return with what the process leaves at once."""
    waited, exits, clock = [], [], time.monotonic
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 1.1 * len(waited))

    def insist(*numbers):
        for number in numbers:
            waited.append(number)
            raise_signal(number)
        return exits

    return insist


def test_a_second_signal_leaves_at_once_but_not_the_launchers_copy(insist):
    with ends(130), postponed():
        raise_signal(SIGINT)
        raise_signal(SIGINT)
        assert insist() == []
        assert insist(SIGTERM) == [143]


def test_a_schedulers_warning_does_not_count_as_a_person_who_insists(capsys, insist):
    """It may come twice, and SIGTERM after it is the end that it warned of: the state is being saved all the while."""
    with ends(75), postponed() as signals:
        raise_signal(SIGUSR1)
        assert signals.warned
        assert insist(SIGUSR1, SIGTERM, SIGUSR1) == []
        assert insist(SIGTERM) == [143]
        signals.stop("saved", warned=True)
    with ends(75), postponed() as signals:  # all processes leave as the one that was warned
        assert not signals.warned
        signals.stop("saved", warned=True)
    assert capsys.readouterr().err.endswith("x: interrupted by SIGUSR1; saved\n")


def test_other_threads_hear_nothing():
    before, found = signal.getsignal(SIGINT), []

    def work():
        with command(), postponed() as signals:
            found.append((signal.getsignal(SIGINT) is before, signals.requested))

    with ThreadPoolExecutor() as pool:
        pool.submit(work)
    assert found == [(True, False)]


@contextmanager
def pool_of(initializer):
    """What starts work in a process of its own, which ends with a block."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=initializer) as pool, ending(pool) as submit:
        yield submit


def test_the_processes_of_a_pool_end_with_what_they_were_for():
    with pytest.raises(Interrupted), pool_of(interruption.leave_to_parent) as submit:
        submit(time.sleep, 0).result()
        for _ in range(3):
            submit(time.sleep, 600)
        raise Interrupted(SIGINT)
    assert not multiprocessing.active_children()


def serve(ready) -> None:
    interruption.serve_loader(0)
    ready.set()
    time.sleep(60)


@on_linux
def test_a_loaders_worker_is_ended_by_its_loader_alone():
    ready = FORK.Event()
    worker = FORK.Process(target=serve, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(20)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    os.kill(worker.pid, SIGINT)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


HANGING = """
import threading, time
from mobileclip.terminal import interruption
interruption._TIDYING_SECONDS = 0.5
with interruption.interruptible("x", "all is kept"):
    thread = threading.Thread(target=time.sleep, args=(120,))
    thread.start()
    try:
        print("ready", flush=True)
        time.sleep(120)  # and not in join(), after which Python takes the thread for ended
    finally:
        {tidying}
"""


def test_what_hangs_after_a_signal_does_not_keep_the_program():
    """Tidying hangs, or a thread is left at the end."""
    pipes, processes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}, []
    for tidying, number in product(("thread.join()", "pass"), (SIGTERM, SIGUSR1)):
        command = [sys.executable, "-c", HANGING.format(tidying=tidying)]
        processes.append((subprocess.Popen(command, text=True, **pipes), number))
    try:
        assert {process.stdout.readline() for process, _ in processes} == {"ready\n"}
        started = time.monotonic()
        for process, number in processes:
            process.send_signal(number)
        for process, number in processes:
            assert process.communicate(timeout=60)[1] == f"x: interrupted by {number.name}; all is kept\n"
            assert process.returncode == STATUSES[number]
        assert time.monotonic() - started < 12
    finally:
        for process, _ in processes:
            process.kill()
    assert interruption._TIDYING_SECONDS < 10, "Docker kills after so many"


def lead(initializer, sender) -> None:
    with pool_of(initializer) as submit:
        submit(time.sleep, 0).result()
        sender.send([child.pid for child in multiprocessing.active_children()])
        submit(time.sleep, 120).result()


@on_linux
@pytest.mark.parametrize("initializer", [interruption.leave_to_parent, interruption.save_for_parent])
def test_a_process_ends_with_a_command_that_is_killed(initializer):
    receiver, sender = FORK.Pipe()
    process = FORK.Process(target=lead, args=(initializer, sender))
    process.start()
    children = set(receiver.recv())
    process.kill()
    process.join()
    assert children
    wait_until_gone(children)


def fail_after_a_signal(ready) -> None:
    with postponed() as signals:
        Path(ready).touch()
        wait_for(lambda: signals.requested)
        raise FULL


def test_what_a_process_could_not_save_for_its_command_is_an_error(tmp_path):
    with pytest.raises(OSError, match="no space left"), pool_of(interruption.save_for_parent) as submit:
        submit(fail_after_a_signal, str(tmp_path / "ready"))
        wait_for((tmp_path / "ready").exists)
        raise Interrupted(SIGTERM)
