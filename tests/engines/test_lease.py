"""One driver at a time in an output, on disks and in stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import attrs
import pytest

from mobileclip import storage
from mobileclip.engines import FatalError, Status, held, read_status
from mobileclip.serialization import from_json, to_json
from tests.errors import fails
from tests.waiting import wait_for

OUTPUT = "s3://data/out"
STATUS = "run/status.json"
OTHER = Status(
    state="running", began="2099-01-01 00:00:00 UTC", written="2099-01-01 00:00:00 UTC", identity="another",
    holder="there, process 7", renewal=7, renewal_seconds=0.1,
)  # fmt: skip


def status_in(store) -> Status:
    return from_json(store.objects[f"data/out/{STATUS}"].decode(), Status)


@pytest.mark.parametrize("knows_conditions", [True, False])
def test_a_second_driver_is_kept_out_and_told_of_the_first(store, knows_conditions):
    store.knows_conditions = knows_conditions
    with held(OUTPUT, renewal_seconds=0.5) as run:
        with (
            fails(ValueError, "s3://data/out", f"process {os.getpid()}"),
            held(OUTPUT),
        ):
            pass
        wait_for(lambda: status_in(store).renewal >= 2)
        assert status_in(store).renewal < store.requests["PUT"], "each is a request, after the first one"
        run.check()
    assert (store.objects.keys(), status_in(store).state) == ({f"data/out/{STATUS}"}, "finished")
    with held(OUTPUT):
        pass


def test_one_that_is_not_renewed_is_taken_over(store):
    """Whatever its owner's clock says: what counts is that nothing is seen of it here."""
    store.objects[f"data/out/{STATUS}"] = to_json(OTHER).encode()
    started = time.monotonic()
    with held(OUTPUT, renewal_seconds=0.1):
        assert 0.3 < time.monotonic() - started < 60
        assert status_in(store).holder != OTHER.holder


def test_one_that_is_given_back_meanwhile_is_taken_at_once(store):
    """One of before that is renewed is not, whatever wrote it."""
    waiting = attrs.evolve(OTHER, renewal_seconds=5.0, began="2026-01-01 00:00:00 UTC")
    path = f"data/out/{STATUS}"
    store.objects[path] = to_json(waiting).encode()
    given_back = to_json(attrs.evolve(waiting, state="finished")).encode()
    threading.Timer(0.3, store.put, [path, given_back]).start()
    started = time.monotonic()
    with held(OUTPUT, renewal_seconds=0.1):
        assert time.monotonic() - started < 15, "it is waited for 20 s, and looked at each second"
        assert status_in(store).identity != OTHER.identity


@pytest.mark.parametrize("text", ["{", '{"state": "finished", "began": "", "written": "", "later": 1}'])
def test_what_nobody_can_read_is_not_taken_over(store, text):
    store.objects[f"data/out/{STATUS}"] = text.encode()
    with fails(ValueError, STATUS), held(OUTPUT):
        pass
    assert store.objects[f"data/out/{STATUS}"] == text.encode()


@pytest.mark.parametrize("knows_conditions", [True, False])
def test_of_two_that_take_over_at_once_one_goes_on(store, knows_conditions):
    """With conditions at once; without, at the first renewal at the latest."""
    store.knows_conditions = knows_conditions
    with held(OUTPUT, renewal_seconds=0.1) as run:
        storage.write_text(f"{OUTPUT}/{STATUS}", to_json(OTHER))
        wait_for(lambda: not run.is_sure)
        with fails(FatalError, "s3://data/out/run/status.json is now of another driver"):
            run.check()
    assert status_in(store) == OTHER, "what is another's is left to it"


def test_while_it_is_not_known_whether_the_lease_holds_nothing_goes_on(store, monkeypatch):
    """A store that is away for a while costs a while, and no run."""
    with held(OUTPUT, renewal_seconds=0.3) as run:
        run.check()
        with monkeypatch.context() as away:
            away.setattr(storage, "write_text_if", lambda *_: False)
            wait_for(lambda: not run.is_sure)
            run.most_seconds = 0.1
            with fails(FatalError, "could not be renewed"):
                run.check()
            run.most_seconds = 60.0
            threading.Timer(0.3, away.undo).start()
            started = time.monotonic()
            run.check()
            assert time.monotonic() - started > 0.2
    assert read_status(OUTPUT).state == "finished"


@pytest.mark.parametrize(("seconds", "is_sure"), [(250, True), (350, False)])
def test_it_is_not_sure_a_renewal_before_another_driver_may_take_over(store, monkeypatch, seconds, is_sure):
    now = time.monotonic
    with held(OUTPUT, renewal_seconds=100.0) as run, monkeypatch.context() as later:
        later.setattr(time, "monotonic", lambda: now() + seconds)
        assert run.is_sure == is_sure


def test_conditions_of_a_store(store):
    path = f"{OUTPUT}/x.txt"
    assert storage.file_version(path) is None
    assert storage.write_text_if(path, "one", None)
    assert not storage.write_text_if(path, "other", None)
    version = storage.file_version(path)
    assert not storage.write_text_if(path, "other", "nothing")
    assert storage.write_text_if(path, "two", version)
    assert not storage.write_text_if(path, "three", version)
    assert storage.read_bytes(path, limit=10) == b"two"
    assert storage.write_text_if("memory://lease/x.txt", "one", None)
    assert not storage.write_text_if("memory://lease/x.txt", "two", None)
    with fails(ValueError):
        storage.write_text_if("https://host/x.txt", "one", None)


PROGRAM = """
import sys, time
from mobileclip.engines import held
with held(sys.argv[1], renewal_seconds=0.2):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_driver_whose_machine_is_gone_is_followed_by_another(store):
    """As far as a store can tell, a process that is killed is a machine that is gone."""
    command = [sys.executable, "-c", PROGRAM, OUTPUT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {driver.pid}"), held(OUTPUT):
            pass
        os.kill(driver.pid, signal.SIGKILL)
    with held(OUTPUT, renewal_seconds=0.2) as run:
        run.check()


def test_a_folder_says_who_holds_it(tmp_path):
    with (
        held(str(tmp_path)),
        fails(ValueError, f"process {os.getpid()}, since"),
        held(str(tmp_path)),
    ):
        pass
    assert read_status(tmp_path).state == "finished"
    with held(str(tmp_path)):
        pass
