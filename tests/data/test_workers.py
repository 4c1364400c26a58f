"""Processes that share work: what becomes of it when one is stopped or killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mobileclip.data import write_shard
from mobileclip.data.joining.join import join_images
from mobileclip.data.joining.spec import JoinSpec
from mobileclip.data.workers import _is_done_in_time, workers
from tests.data.made_samples import encoded, make_sample, write_raw


def attempted(item):
    """Do what the item says to the process that does it."""
    if item in ("SIGSTOP", "SIGKILL"):
        os.kill(os.getpid(), signal.Signals[item])
    return item


def share_all(items, *, shard_seconds):
    with workers(2, shard_seconds=shard_seconds) as share:
        yield from share(attempted, items, doing="trying")


@pytest.mark.slow
def test_a_process_that_is_stopped_ends_the_work_in_time():
    started = time.monotonic()
    found = []
    with pytest.raises(ValueError, match="none of 2 processes finished a shard in 12 s while trying SIGSTOP"):
        found.extend(share_all(["one", "SIGSTOP", "three", "four"], shard_seconds=12.0))  # starting takes most of it
    assert found == ["one"]
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children(), "it is left to no one"


def test_as_long_as_something_is_finished_the_first_is_waited_for(monkeypatch):
    """It takes longer than the limit, but those behind it come in time."""
    monkeypatch.setattr("mobileclip.data.workers._LOOK_SECONDS", 0.02)
    with ThreadPoolExecutor(2) as pool:
        first, *others = calls = [pool.submit(time.sleep, 1.5), *(pool.submit(time.sleep, 0.3) for _ in range(4))]
        assert _is_done_in_time(first, calls, 0.8)
        assert all(call.done() for call in others)
        slow = pool.submit(time.sleep, 1.0)
        assert not _is_done_in_time(slow, [slow, *others], 0.3)


def test_a_process_that_is_killed_is_said_so():
    with pytest.raises(ValueError, match=r"ended abruptly while trying .*fewer processes"):
        list(share_all(["one", "SIGKILL", "three"], shard_seconds=60.0))


def test_a_join_whose_processes_are_stopped_ends_and_goes_on_later(tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"r{number}.tar", [make_sample(number, image=None)])
        write_raw(tmp_path / f"i{number}.tar", {f"{number:06d}": {"png": encoded(40, 30, seed=number)}})
    choices = {
        "reinforced": "::".join(str(tmp_path / f"r{number}.tar") for number in range(3)),
        "images": "::".join(str(tmp_path / f"i{number}.tar") for number in range(3)),
        "output": str(tmp_path / "out"),
    }
    ended = threading.Event()

    def stop():
        while not ended.is_set():
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGSTOP)
            time.sleep(0.01)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        threading.Timer(1.0, ended.set).start()
        with pytest.raises(ValueError, match=r"while indexing the images of .*i0\.tar: one may be stopped"):
            join_images(JoinSpec(**choices, num_workers=2, shard_seconds=3.0), show_progress=False)
    finally:
        ended.set()
        stopper.join()
    assert join_images(JoinSpec(**choices), show_progress=False).joined == 3
