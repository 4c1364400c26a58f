"""Processes that work ahead: what becomes of it when one is stopped or killed."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mobileclip.data import LostProcessError
from mobileclip.data.workers import _is_done_in_time, workers
from tests.errors import fails


def attempted(item):
    """Do what the item says to the process that does it."""
    if item in ("SIGSTOP", "SIGKILL"):
        os.kill(os.getpid(), signal.Signals[item])
    return item


def share_all(items, *, seconds):
    with workers(2, seconds=seconds) as share:
        yield from share(attempted, items, doing="trying")


@pytest.mark.slow
def test_a_process_that_is_stopped_ends_the_work_in_time():
    started = time.monotonic()
    found = []
    with fails(ValueError, "2", "12 s", "trying SIGSTOP"):
        found.extend(share_all(["one", "SIGSTOP", "three", "four"], seconds=12.0))  # starting takes most of it
    assert found == ["one"]
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children(), "it is left to no one"


def test_as_long_as_something_is_finished_the_first_is_waited_for(monkeypatch):
    """It takes longer than the limit, but those behind it come in time."""
    monkeypatch.setattr("mobileclip.data.workers._LOOK_SECONDS", 0.02)
    with ThreadPoolExecutor(2) as pool:
        behind, never = threading.Event(), threading.Event()
        first, *others = calls = [pool.submit(behind.wait), *(pool.submit(time.sleep, 0.2) for _ in range(4))]
        others[-1].add_done_callback(lambda _: behind.set())
        assert _is_done_in_time(first, calls, 0.6)
        assert all(call.done() for call in others)
        slow = pool.submit(never.wait)
        is_done = _is_done_in_time(slow, [slow, *others], 0.1)
        never.set()
        assert not is_done


def test_a_process_that_is_killed_is_said_so():
    with fails(LostProcessError, "trying"):
        list(share_all(["one", "SIGKILL", "three"], seconds=60.0))
