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

from benchmarks.object_store import object_store
from mobileclip import storage
from mobileclip.engines import LEASE, Hold, Lease, held
from mobileclip.serialization import from_json, to_json
from tests.errors import fails

OUTPUT = "s3://data/out"


@pytest.fixture
def store():
    with object_store() as opened:
        yield opened


def lease_in(store) -> Lease:
    return from_json(store.objects[f"data/out/{LEASE}"].decode(), Lease)


@pytest.mark.parametrize("knows_conditions", [True, False])
def test_a_second_driver_is_kept_out_and_told_of_the_first(store, knows_conditions):
    store.knows_conditions = knows_conditions
    with held(OUTPUT, renewal_seconds=0.1) as hold:
        with (
            fails("engines.another-driver-works-wait", "s3://data/out/", f"process {os.getpid()}"),
            held(OUTPUT),
        ):
            pass
        time.sleep(0.5)
        renewal = lease_in(store).renewal
        assert 2 <= renewal < store.requests["PUT"], "each is a request, after the first one"
        hold.check()
    assert store.objects == {}
    with held(OUTPUT):
        pass


def test_one_that_is_not_renewed_is_taken_over(store):
    """Whatever its owner's clock says: what counts is that nothing is seen of it here."""
    dead = attrs.evolve(Lease.new(0.1), since="2099-01-01 00:00:00 UTC", renewal=7)
    store.objects[f"data/out/{LEASE}"] = to_json(dead).encode()
    started = time.monotonic()
    with held(OUTPUT, renewal_seconds=0.1):
        assert 0.3 < time.monotonic() - started < 10
        assert lease_in(store).identity != dead.identity


@pytest.mark.parametrize("knows_conditions", [True, False])
def test_of_two_that_take_over_at_once_one_goes_on(store, knows_conditions):
    """With conditions at once; without, at the first renewal at the latest."""
    store.knows_conditions = knows_conditions
    with held(OUTPUT, renewal_seconds=0.1) as hold:
        other = Lease.new(0.1)
        storage.write_text(f"{OUTPUT}/{LEASE}", to_json(other))
        time.sleep(0.5)
        with fails("engines.run-ends-finished-kept", "s3://data/out/run/lease.json is now of another driver"):
            hold.check()
    assert lease_in(store) == other, "what is another's is left to it"


def test_while_it_is_not_known_whether_the_lease_holds_nothing_goes_on():
    """A store that is away for a while costs a while, and no run."""
    hold = Hold(0.1)
    hold.check()
    time.sleep(0.2)
    assert not hold.is_sure
    started = time.monotonic()
    threading.Timer(0.3, hold.renew).start()
    hold.check()
    assert time.monotonic() - started > 0.2
    time.sleep(0.2)
    threading.Timer(0.1, hold.lose, ["it is another's"]).start()
    with fails("engines.run-ends-finished-kept", "it is another's"):
        hold.check()
    old = Hold(0.01, most_seconds=0.1)
    time.sleep(0.02)
    with fails("engines.run-ends-finished-kept", "could not be renewed"):
        old.check()


@pytest.mark.parametrize(("seconds", "is_sure"), [(250, True), (350, False)])
def test_it_is_not_sure_a_renewal_before_another_driver_may_take_over(store, monkeypatch, seconds, is_sure):
    now = time.monotonic
    with held(OUTPUT, renewal_seconds=100.0) as hold, monkeypatch.context() as later:
        later.setattr(time, "monotonic", lambda: now() + seconds)
        assert hold.is_sure == is_sure


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
    with fails("storage.only-read"):
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
    with held(OUTPUT, renewal_seconds=0.2) as hold:
        hold.check()


def test_a_folder_says_who_holds_it(tmp_path):
    with (
        held(str(tmp_path)),
        fails("storage.another-job-working-wait", f"process {os.getpid()}, since"),
        held(str(tmp_path)),
    ):
        pass
    assert not (tmp_path / LEASE).exists()
    with held(str(tmp_path)):
        pass
