"""The harness sees what it is there to see."""

import json
import subprocess
import sys

import pytest

# In a process without pytest's threads and plug-ins, as the trials are.
SCRIPT = """
import json, os, pickle, time, subprocess, sys
from tests.trials.harness import CANARY, Case, PickledCanary, try_all

def raising(error):
    def attempt(folder):
        raise error
    return attempt

def returning(value):
    return lambda folder: value

def started(folder):
    subprocess.run(["true"])
    return "accepted"

def evaluated(folder):
    eval(CANARY)
    return "refused"

def unpickled(folder):
    pickle.loads(pickle.dumps(PickledCanary()))
    return "refused"

def looked_up(folder):
    import socket
    try:
        socket.getaddrinfo("example.invalid", 80)
    except OSError:
        pass
    return "refused"

def slept(folder):
    time.sleep(60)

def allocated(folder):
    return "accepted" if bytearray(2**32) else "wrong"

def touched(folder):
    held = bytearray(200 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    return "accepted"

cases = {
    "refused": raising(ValueError("the file is damaged")),
    "empty": raising(ValueError("")),
    "long": raising(ValueError("x" * 5000)),
    "left": raising(SystemExit(2)),
    "skipped": returning("skipped"),
    "accepted": returning("accepted"),
    "wrong": raising(AssertionError("0.5 is not 0.7")),
    "traceback": raising(KeyError("x")),
    "died": lambda folder: os.abort(),
    "slept": slept,
    "allocated": allocated,
    "touched": touched,
    "evaluated": evaluated,
    "unpickled": unpickled,
    "started": started,
    "looked up": looked_up,
}
listed = [Case(name=name, attempt=attempt, seconds=0.5 if name == "slept" else 20.0) for name, attempt in cases.items()]
listed.append(Case(name="may start", attempt=started, may_start=True))
for one in try_all("harness", listed):
    print(json.dumps([one.name, one.outcome, one.num_bytes]))
"""


@pytest.fixture(scope="module")
def tried(request):
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=request.config.rootpath
    )
    return {name: (outcome, num_bytes) for name, outcome, num_bytes in map(json.loads, finished.stdout.splitlines())}


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("refused", "refused"),
        ("empty", "traceback"),
        ("long", "traceback"),
        ("left", "refused"),
        ("skipped", "skipped"),
        ("accepted", "accepted"),
        ("wrong", "wrong"),
        ("traceback", "traceback"),
        ("died", "traceback"),
        ("slept", "hung"),
        ("allocated", "out of memory"),
        ("evaluated", "ran code"),
        ("unpickled", "ran code"),
        ("started", "ran code"),
        ("looked up", "ran code"),
        ("may start", "accepted"),
    ],
)
def test_what_became_of_it(tried, name, outcome):
    assert tried[name][0] == outcome


def test_memory_is_measured(tried):
    assert 190 * 2**20 < tried["touched"][1] < 260 * 2**20
