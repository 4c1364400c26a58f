"""Commands that signals end, whether they work or wait: they say so in a line, in time, and leave no halves."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM

import attrs
import pytest

from mobileclip.data import ReinforcementCard, write_card, write_shard
from mobileclip.encoders import save_model
from mobileclip.reinforce import Manifest, ShardEntry
from mobileclip.storage import exclusive
from tests.data.made_samples import encoded, make_sample, write_raw
from tests.descendants import descendants, kill_all, wait_until_gone
from tests.encoders.small import SMALL, randomised
from tests.examples.quickstart.drawings import write_packages
from tests.preloaded import preloaded
from tests.reinforce.conftest import picture, plain_sample
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
ROOT = Path(__file__).parents[2]


def end(line, folder, is_ready, number, *, seconds, send=os.killpg):
    """Start Python, send a signal to it when it is ready, and return its status and errors.

    Args:
        line: what is given to Python.
        folder: where it runs.
        is_ready: from the number of the process to whether it is.
        number: of the signal.
        seconds: that pass from then on.
        send: `os.killpg` sends it to all its processes.
    """
    process = preloaded().start(*line, folder=folder, environment={"PYTHONPATH": f"{ROOT}"})
    try:
        wait_for(lambda: is_ready(process.pid), process, every=0.005)
        time.sleep(seconds)
        assert process.poll() is None, process.communicate()[1][-2000:]
        below = descendants(process.pid)
        send(process.pid, number)
        _, errors = process.communicate(timeout=60)  # what is waited for never comes
    finally:
        kill_all(process)
    wait_until_gone(below)
    return process.returncode, errors


def assert_ended(status, errors, number):
    assert (status, "Traceback" in errors) == (128 + number, False), errors[-2000:]
    assert f": interrupted by {number.name}; " in errors.strip().splitlines()[-1], errors[-2000:]


def photos(folder: Path) -> None:
    model(folder)
    (folder / "pictures").mkdir()
    data = (ROOT / "tests/golden/augment/images/chelsea.png").read_bytes()
    for index in range(3000):
        (folder / "pictures" / f"{index}.jpg").write_bytes(data)


def model(folder: Path) -> None:
    save_model(randomised(SMALL), folder / "small.safetensors")


def reinforced(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    write_card(data, ReinforcementCard(layout="npz", num_augmentations=3))
    first = write_shard(data / "000.tar", [make_sample(number) for number in range(40)])
    for number in range(1, 100):
        shutil.copy(first, data / f"{number:03d}.tar")
    manifest = Manifest(data)
    for shard in sorted(data.glob("*.tar")):
        manifest.add(ShardEntry(shard=shard.name, fingerprint="", num_samples=40, num_bytes=first.stat().st_size))


def without_images(folder: Path) -> None:
    for number in range(60):
        samples = [attrs.evolve(make_sample(10 * number + one), image=None) for one in range(10)]
        write_shard(folder / f"r{number:02d}.tar", samples)
    write_raw(folder / "images.tar", {f"{number:06d}": {"png": encoded(40, 30)} for number in range(600)})


@attrs.frozen
class Command:
    """A command line, what lies there before, and what shows that it is at work.

    Args:
        line: what is given to Python.
        sign: a pattern of files, or of those that the process has open.
        prepare: makes what the command reads, in a folder.
        seconds: from the sign to the signal.
        untouched: whether it writes nothing where it is interrupted.
    """

    line: str
    sign: str
    prepare: Callable[[Path], object] = lambda _: None
    seconds: float = 0.0
    untouched: bool = False


EMBED, CHECK = "embed pictures -m small.safetensors -o all.npz", "data check data --samples 0"
EXPORT, JOIN = "export small.safetensors --target torch -o out", "data join r{00..59}.tar images.tar -o joined"
PACKAGES = "outputs/quickstart/data/download/node_modules"
QUICKSTART, DRAWN = "-m examples.quickstart --concept-share 1.0", "outputs/quickstart/data/renderings/*.tar"
COMMANDS = {
    line: Command(f"{ROOT}/recipes/{line} --tiny", "outputs/tiny/*", seconds=0.5)
    for line in ("reinforce_dfndr2b.py --num-workers 2", "finetune.py", "evaluate.py", "train_vit_b16_12m.py plain")
} | {
    "embed": Command(f"-m mobileclip.cli {EMBED}", "open:pictures/*.jpg", photos, untouched=True),
    "export": Command(f"-m mobileclip.cli {EXPORT}", ".mobileclip-*.tmp", model, seconds=0.5, untouched=True),
    "data join": Command(f"-m mobileclip.cli {JOIN}", "joined/join/r02.parquet", without_images),
    "data verify": Command(f"-m mobileclip.cli {CHECK}", "open:data/*.tar", reinforced, untouched=True),
    "quickstart": Command(QUICKSTART, DRAWN, lambda folder: write_packages(folder / PACKAGES)),
}
# Each command by one signal in every run of the tests, where that takes seconds.
QUICK = {"export": SIGINT, "data join": SIGTERM, "data verify": SIGINT}


def shows(sign: str, folder: Path, pid: int) -> bool:
    """Return whether there is such a file, or whether the process has one open."""
    files = {str(path) for path in folder.glob(sign.removeprefix("open:"))}
    if not sign.startswith("open:"):
        return bool(files)
    with suppress(OSError):
        return any(str(handle.readlink()) in files for handle in Path(f"/proc/{pid}/fd").iterdir())
    return False


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_whole(folder: Path) -> None:
    """Shards and JSON can be read to their ends, and nothing is there that was to become something."""
    for path in folder.rglob("*"):
        assert not path.name.endswith((".tmp", ".partial", ".exporting", "-journal")), path
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                assert all(len(archive.extractfile(member).read()) == member.size for member in archive)
            assert path.read_bytes().endswith(bytes(1024)), path
        elif path.suffix == ".json":
            json.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=() if QUICK.get(name) == number else pytest.mark.slow)
        for name in COMMANDS
        for number in (SIGINT, SIGTERM)
    ],
)
def test_a_signal_ends_a_command_and_all_its_processes(name, number, tmp_path):
    command = COMMANDS[name]
    command.prepare(tmp_path)
    before = contents(tmp_path) if command.untouched else {}
    is_ready = partial(shows, command.sign, tmp_path)
    assert_ended(*end(command.line.split(), tmp_path, is_ready, number, seconds=command.seconds), number)
    assert_whole(tmp_path)
    assert not command.untouched or contents(tmp_path) == before


BEGINNING = """
import multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mobileclip.cli import main
from mobileclip.data import AugmentationSpec, read_samples
from mobileclip.engines import InlineEngine, LocalEngine
from mobileclip.recipes import reported
from mobileclip.storage import exclusive, read_bytes
from mobileclip.terminal import interruption
from tests.engines.works import Counting, Noting, tasks
from tests.waiting import wait_for
interruption._TIDYING_SECONDS = 1.0
folder, address = Path(sys.argv[1]), sys.argv[2]
ready = (folder / "ready").touch
class Telling(Noting):
    def advanced(self, count):
        ready()
"""
REPORTED = """
if __name__ == "__main__":
    with reported("x", None), ThreadPoolExecutor(4) as pool:
        {}
"""
LISTED = 'list(pool.map(lambda shard: [*read_samples([shard])], [f"{address}/{number}.tar" for number in range(4)]))'
ENGINE = '{}.run(Counting(folder=folder), tasks("{}", "good-1"), Telling())'
REINFORCE = """
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble, reinforce
from tests.reinforce.conftest import tiny_teacher
def tell():
    wait_for((folder / "out" / "a.tar").exists)
    time.sleep(0.3)
    ready()
threading.Thread(target=tell, daemon=True).start()
shards, augmentation = [folder / "a.tar", folder / "b.tar"], AugmentationSpec(size=32)
spec = ReinforcementSpec(source=shards, output=folder / "out", num_augmentations=2, augmentation=augmentation)
teachers = TeacherEnsemble([tiny_teacher("first", dim=6, size=32, seed=1)])
""" + REPORTED.format('reinforce(spec, teachers=teachers, engine=InlineEngine(device="cpu"), show_progress=False)')
EVALUATE = (
    'ready()\nmain(["eval", str(folder / "small.safetensors"), f"{address}/test", "--output", str(folder / "out")])'
)
INDEX = """
def stop():
    wait_for(lambda: len(multiprocessing.active_children()) == 2)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    ready()
if __name__ == "__main__":
    threading.Thread(target=stop, daemon=True).start()
    os.chdir(folder)
    main(["index", "photos", "--index", "index", "-m", "small.safetensors", "-j", "2"])
"""
PROGRAMS = {
    "a lock": REPORTED.format('ready(); exclusive(folder / "held", wait_seconds=600).__enter__()'),
    "a store": REPORTED.format('ready(); read_bytes(f"{address}/file", limit=100)'),
    "a store, in threads": REPORTED.format(f"ready(); {LISTED}"),
    "a unit": REPORTED.format(ENGINE.format('InlineEngine(device="cpu")', "hangs-0")),
    "the end of a unit": REPORTED.format(ENGINE.format('InlineEngine(device="cpu")', "stuck-0")),
    "a worker": REPORTED.format(ENGINE.format('LocalEngine(num_workers=1, devices=("cpu",), apart=True)', "hangs-0")),
    "a shard that is reinforced": REINFORCE,
    "a data set that is evaluated": EVALUATE,
    "pictures that are read": INDEX,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """All programs, side by side: what takes long is waiting."""
    given = tmp_path_factory.mktemp("given")
    write_shard(given / "a.tar", [plain_sample("one", 1), plain_sample("two", 2)])
    save_model(randomised(SMALL), given / "small.safetensors")
    (given / "photos").mkdir()
    for number in range(200):
        (given / "photos" / f"{number}.png").write_bytes(picture(number))
    folders = {what: tmp_path_factory.mktemp("waiting") / "folder" for what in PROGRAMS}
    for what, folder in folders.items():
        shutil.copytree(given, folder)
        os.mkfifo(folder / "b.tar")
        (folder / "script.py").write_text(BEGINNING + PROGRAMS[what])
    # A server that takes connections, and answers none.
    server = socket.create_server(("127.0.0.1", 0))
    with server, exclusive(folders["a lock"] / "held"), ThreadPoolExecutor(len(folders)) as pool:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def waits(folder):
            line = (folder / "script.py", folder, address)
            return folder, end(line, folder, lambda _: (folder / "ready").exists(), SIGTERM, seconds=0.3, send=os.kill)

        yield {what: pool.submit(waits, folder) for what, folder in folders.items()}


@pytest.mark.parametrize("what", PROGRAMS)
def test_sigterm_ends_the_waiting_for(what, ended):
    folder, status_and_errors = ended[what].result()
    assert_ended(*status_and_errors, SIGTERM)
    if what == "a shard that is reinforced":
        assert list(Manifest(folder / "out")) == ["a.tar"]
