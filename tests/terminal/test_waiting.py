"""Whatever a command waits for, SIGTERM ends the waiting within the time that Docker and Kubernetes give."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mobileclip.data import write_shard
from mobileclip.encoders import save_model
from mobileclip.reinforce import Manifest
from mobileclip.storage import exclusive
from tests.descendants import descendants, kill_all, wait_until_gone
from tests.encoders.small import SMALL, randomised
from tests.preloaded import preloaded
from tests.reinforce.conftest import picture, plain_sample
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

BEGINNING = """
import sys
from pathlib import Path
from mobileclip.recipes import reported
from mobileclip.terminal import interruption
interruption._TIDYING_SECONDS = 1.0
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
from mobileclip.engines import InlineEngine
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble, reinforce
from tests.reinforce.conftest import tiny_teacher
from mobileclip.data import AugmentationSpec
import threading, time
from tests.waiting import wait_for
def tell():
    wait_for((folder / "out" / "a.tar").exists)
    time.sleep(0.3)
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
import multiprocessing, os, signal, threading
from mobileclip.cli import main
from tests.waiting import wait_for
def stop():
    wait_for(lambda: len(multiprocessing.active_children()) == 2)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    ready()
if __name__ == "__main__":
    threading.Thread(target=stop, daemon=True).start()
    photos = str(folder / "photos")
    main(["index", photos, "--index", str(folder / "index"), "-m", str(folder / "small.safetensors"), "-j", "2"])
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


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the programs read."""
    folder = tmp_path_factory.mktemp("given")
    write_shard(folder / "a.tar", [plain_sample("one", 1), plain_sample("two", 2)])
    save_model(randomised(SMALL), folder / "small.safetensors")
    (folder / "photos").mkdir()
    for number in range(200):
        (folder / "photos" / f"{number}.png").write_bytes(picture(number))
    return folder


@pytest.fixture(scope="module")
def ended(given, tmp_path_factory):
    """All programs, side by side: what takes long is waiting."""
    folders = {what: tmp_path_factory.mktemp("waiting") / "folder" for what in PROGRAMS}
    for what, folder in folders.items():
        shutil.copytree(given, folder)
        os.mkfifo(folder / "b.tar")
        (folder / "script.py").write_text(BEGINNING + PROGRAMS[what])
    # A server that takes connections, and answers none.
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        exclusive(folders["a lock"] / "held"),
        ThreadPoolExecutor(len(folders)) as pool,
    ):
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield {what: pool.submit(terminated, folder, address) for what, folder in folders.items()}


def terminated(folder: Path, address: str) -> tuple[Path, int, str, set[int]]:
    """Start a program, send SIGTERM when it waits, and return its folder, status, errors and what was below it."""
    process = preloaded().start(folder / "script.py", folder, address, folder=folder)
    try:
        wait_for((folder / "ready").exists, process)
        time.sleep(0.3)
        assert process.poll() is None, process.communicate()[1]
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)  # what is waited for never comes
    finally:
        kill_all(process)
    return folder, process.returncode, errors, below


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_signal_ends_the_waiting_for(what, ended):
    folder, status, errors, left = ended[what].result()
    assert (status, "Traceback" in errors) == (143, False), errors
    assert re.match(r"(x|mobileclip): interrupted by SIGTERM; ", errors.splitlines()[-1]), errors
    wait_until_gone(left)
    if what == "a shard that is reinforced":
        assert list(Manifest(folder / "out")) == ["a.tar"]
