"""A job that is killed at any moment loses nothing that it finished, and the next one does the rest."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.collections import INDEX, Collection, IndexOptions, ModelSource, Store
from mobileclip.collections.index import MARK
from mobileclip.engines import LocalEngine, Retries
from mobileclip.storage import LOCK
from tests.collections.pictures import contents, draw
from tests.crash.world import Command
from tests.preloaded import preloaded
from tests.survives import Moment, Program, Survival, survives
from tests.waiting import wait_for

# Which form of a model is the fastest, and so the last digits, depends on the moment.
OPTIONS = IndexOptions(precision="float32", show_progress=False)
ROOT = Path(__file__).parents[3]
JOB = """
import sys
from mobileclip.collections import Collection, IndexOptions
print("ready", flush=True)
options = IndexOptions(segment_rows=int(sys.argv[3]), batch_size=4, precision="float32", show_progress=False)
Collection.open(sys.argv[1]).add(sys.argv[2], options=options)
"""


def start(index, photos, segment_rows):
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(index), str(photos), str(segment_rows)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def num_rows(index):
    return len(Store.open(index).values("id"))


def assert_as_undisturbed(index, photos, checkpoint, tmp_path):
    whole = Collection.create(tmp_path / "whole", ModelSource(checkpoint=str(checkpoint)))
    whole.add(photos, options=OPTIONS)
    expected, found = contents(whole), contents(Collection.open(index))
    assert found.keys() == expected.keys()
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name].astype(np.float32), vector.astype(np.float32), atol=2e-3)


def test_a_killed_job_is_finished_by_the_next(tmp_path, telling_file):
    photos, index = tmp_path / "photos", tmp_path / "index"
    for number in range(120):
        draw(photos / f"{number:03d}.png", number)
    Collection.create(index, ModelSource(checkpoint=str(telling_file)))
    job = preloaded().start("-c", JOB, index, photos, 8, folder=tmp_path)
    wait_for(lambda: num_rows(index) >= 24, job, every=0.005)
    job.kill()
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    kept = num_rows(index)
    assert 24 <= kept < 120
    report = Collection.open(index).add(photos, options=OPTIONS)
    assert (report.num_unchanged, report.num_encoded) == (kept, 120 - kept)
    assert_as_undisturbed(index, photos, telling_file, tmp_path)


@pytest.fixture
def killing(tmp_path, monkeypatch):
    """Have every process that is started end when it opens a file of this name, as by a crash of a decoder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def look(event, values):\n"
        "    if event == 'open' and str(values[0]).endswith('killer.png'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(look)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    return "killer.png"


@pytest.fixture(scope="module")
def indexing(tmp_path_factory, telling_file):
    """A command that makes an index of a folder, and what it does to files."""
    command = Command(
        prepare=lambda folder: [draw(folder / "photos" / f"{number}.png", number) for number in range(3)],
        arguments=("index", "photos", "-i", "index", "-m", str(telling_file), "-j", "1", "--quiet"),
    )
    return Survival.of(command, tmp_path_factory.mktemp("indexing") / "trial")


@pytest.mark.parametrize("event", ["open", "os.rename"])
def test_a_job_that_is_killed_while_it_makes_an_index_locks_nobody_out(indexing, event):
    (first, *_) = [
        number
        for number, operation in enumerate(indexing.operations, start=1)
        if operation.startswith(f"{event} /index/.mobileclip-")
    ]
    folder = indexing.fresh()
    killed = indexing.command.run(folder, Moment(operation=first))
    assert killed.status == -signal.SIGKILL
    assert (folder / "index" / LOCK).exists()
    assert not (folder / "index" / INDEX).exists()
    done = indexing.command.run(folder)
    assert done.status == 0, done.output
    assert "3 images in the index: 3 encoded" in done.output
    assert not [path for path in (folder / "index").iterdir() if path.name.startswith(".mobileclip-")]


def draw_around(photos, num_photos, killer):
    """Draw so many pictures, and one of this name among them, whose path is returned."""
    for number in range(num_photos):
        draw(photos / f"{number:03d}.png", number)
    return draw(photos / killer, 300)


def assert_alone_set_aside(report, killer):
    (aside,) = report.set_aside
    assert aside.unit == str(killer)
    assert "ended with exit code -9" in aside.reason


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_picture_that_kills_its_worker_is_set_aside_alone(tmp_path, telling_file, killing, num_workers):
    photos, index = tmp_path / "photos", tmp_path / "index"
    killer = draw_around(photos, 255, f"100-{killing}")
    collection = Collection.create(index, ModelSource(checkpoint=str(telling_file)))
    engine = LocalEngine(num_workers=num_workers, devices=("cpu",), apart=True, retries=Retries(pause_seconds=0.0))
    report = collection.add(photos, options=OPTIONS, engine=engine)
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, len(collection)) == (255, 255)


@pytest.mark.slow
def test_without_an_engine_it_is_so_too_and_the_next_run_tries_it_apart(tmp_path, telling_file, killing):
    photos, index = tmp_path / "photos", tmp_path / "index"
    killer = draw_around(photos, 255, f"100-{killing}")
    collection = Collection.create(index, ModelSource(checkpoint=str(telling_file)))
    report = collection.add(photos, options=attrs.evolve(OPTIONS, num_workers=2))
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, len(collection)) == (255, 255)
    draw(photos / "later.png", 400)
    report = collection.add(photos, options=attrs.evolve(OPTIONS, num_workers=2))
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, report.num_unchanged) == (1, 255)
    # Whatever was wrong with it is mended.
    killer.rename(photos / "harmless.png")
    assert collection.add(photos, options=OPTIONS).num_encoded == 1


@pytest.mark.slow
def test_a_job_that_dies_of_a_picture_that_it_reads_itself_is_finished_by_the_next(tmp_path, telling_file, killing):
    photos, index = tmp_path / "photos", tmp_path / "index"
    killer = draw_around(photos, 40, f"020-{killing}")
    Collection.create(index, ModelSource(checkpoint=str(telling_file)))
    job = start(index, photos, 4096)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    assert num_rows(index) == 0
    collection = Collection.open(index)
    report = collection.add(photos, options=OPTIONS)
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, len(collection)) == (40, 40)
    assert not (index / MARK).exists()


class Near:
    """An embedding, which another batch gives with other last digits."""

    def __init__(self, vector: np.ndarray) -> None:
        self.vector = vector.astype(np.float32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and np.allclose(self.vector, other.vector, rtol=1e-7, atol=2e-3)

    __hash__ = None


def rows(folder):
    return {path: Near(vector) for (path, _), vector in contents(Collection.open(folder / "index")).items()}


@pytest.mark.slow
def test_twenty_kills_and_changed_files_lose_and_double_nothing(tmp_path, telling_file):
    torn = b"\x89PNG\r\n\x1a\n"

    def prepare(folder):
        for number in range(3000):
            draw(folder / "photos" / f"{number % 7}" / f"{number:04d}.png", number)
        (folder / "photos" / "torn.png").write_bytes(torn)
        Collection.create(folder / "index", ModelSource(checkpoint=str(telling_file)))

    def change(folder, kill):
        """Files change under it: one moves, one is drawn anew, one goes."""
        photos = folder / "photos"
        moved, changed, gone = random.Random(kill).sample(sorted(photos.rglob("*.png")), 3)
        moved.rename(photos / f"moved{kill}.png")
        draw(changed, 10_000 + kill)
        gone.unlink()
        (photos / "torn.png").write_bytes(torn)

    program = Program(
        line=("-m", JOB, "index", "photos", "16"),
        prepare=prepare,
        progress=lambda folder: num_rows(folder / "index"),
        most=2900,
        read=rows,
    )
    moments = Moment.drawn(20, 0, more=(1, 120), seconds=0.05)
    survives(program, [attrs.evolve(moment, alone=True) for moment in moments], tmp_path, changes=change)
