"""Whatever a command waits for, SIGTERM ends the waiting within the time that Docker and Kubernetes give."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobileclip.data import write_shard
from mobileclip.encoders import save_model
from mobileclip.reinforce import Manifest
from mobileclip.storage import exclusive
from tests.descendants import are_gone, descendants, kill_all
from tests.encoders.small import SMALL, randomised
from tests.reinforce.conftest import picture, plain_sample

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

BEGINNING = """
import sys
from pathlib import Path
from mobileclip.recipes import reported
folder, address = Path(sys.argv[1]), sys.argv[2]
def ready():
    (folder / "ready").touch()
"""
LOCK = """
from mobileclip.storage import exclusive
with reported("x", None):
    ready()
    with exclusive(folder / "held", wait_seconds=600):
        pass
"""
STORE = """
from mobileclip.storage import read_bytes
with reported("x", None):
    ready()
    read_bytes(f"{address}/file", limit=100)
"""
LISTED_STORE = """
from mobileclip.data import read_samples
from concurrent.futures import ThreadPoolExecutor
with reported("x", None), ThreadPoolExecutor(4) as pool:
    ready()
    list(pool.map(lambda shard: list(read_samples([shard])), [f"{address}/{number}.tar" for number in range(4)]))
"""
ENGINE = """
from mobileclip.engines import InlineEngine, LocalEngine
from tests.engines.works import Counting, Noting, tasks
class Telling(Noting):
    def advanced(self, count):
        ready()
if __name__ == "__main__":
    (folder / "work").mkdir()
    with reported("x", None):
        {engine}.run(Counting(folder=folder / "work"), tasks({name!r}, "good-1"), Telling())
"""
REINFORCE = """
from mobileclip.reinforce import InlineEngine, ReinforcementSpec, TeacherEnsemble, reinforce
from tests.reinforce.conftest import tiny_teacher
from mobileclip.data import AugmentationSpec
import threading, time
def tell():
    while not (folder / "out" / "a.tar").exists():
        time.sleep(0.05)
    time.sleep(1)
    ready()
threading.Thread(target=tell, daemon=True).start()
with reported("x", None):
    spec = ReinforcementSpec(
        source=[folder / "a.tar", folder / "b.tar"], output=folder / "out", num_augmentations=2,
        augmentation=AugmentationSpec(size=32),
    )
    teachers = TeacherEnsemble([tiny_teacher("first", dim=6, size=32, seed=1)])
    reinforce(spec, teachers=teachers, engine=InlineEngine(device="cpu", num_threads=2), show_progress=False)
"""
EVALUATE = """
from mobileclip.cli import main
ready()
main(["eval", str(folder / "small.safetensors"), f"{address}/test", "--output", str(folder / "out")])
"""
INDEX = """
import multiprocessing, os, signal, threading, time
from mobileclip.cli import main
def stop():
    while len(children := multiprocessing.active_children()) < 2:
        time.sleep(0.05)
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    ready()
if __name__ == "__main__":
    threading.Thread(target=stop, daemon=True).start()
    photos = str(folder / "photos")
    main(["index", photos, "--index", str(folder / "index"), "-c", str(folder / "small.safetensors"), "-j", "2"])
"""
PROGRAMS = {
    "a lock": LOCK,
    "a store": STORE,
    "a store, in threads": LISTED_STORE,
    "a unit": ENGINE.format(engine='InlineEngine(device="cpu")', name="hangs-0"),
    "the end of a unit": ENGINE.format(engine='InlineEngine(device="cpu")', name="stuck-0"),
    "a worker": ENGINE.format(engine='LocalEngine(num_workers=1, devices=("cpu",), apart=True)', name="hangs-0"),
    "a shard that is reinforced": REINFORCE,
    "a data set that is evaluated": EVALUATE,
    "pictures that are read": INDEX,
}


@pytest.fixture
def silent():
    """The address of a server that takes connections, and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_signal_ends_the_waiting_for(what, tmp_path, silent):
    script = tmp_path / "script.py"
    script.write_text(BEGINNING + PROGRAMS[what])
    write_shard(tmp_path / "a.tar", [plain_sample("one", 1), plain_sample("two", 2)])
    os.mkfifo(tmp_path / "b.tar")
    save_model(randomised(SMALL), tmp_path / "small.safetensors")
    (tmp_path / "photos").mkdir()
    for number in range(200):
        (tmp_path / "photos" / f"{number}.png").write_bytes(picture(number))
    with exclusive(tmp_path / "held"):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), silent],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "ready").exists():
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1)
            assert process.poll() is None, process.stderr.read()
            below, started = descendants(process.pid), time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            kill_all(process)
    assert process.returncode == 143, errors
    assert time.monotonic() - started < 20
    assert re.match(r"(x|mobileclip): interrupted by SIGTERM; ", errors.splitlines()[-1]), errors
    assert "Traceback" not in errors
    assert are_gone(below)
    if what == "a shard that is reinforced":
        assert list(Manifest(tmp_path / "out")) == ["a.tar"]
