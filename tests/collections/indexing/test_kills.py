"""A job that is killed at any moment loses nothing that it finished, and the next one does the rest."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mobileclip.collections import Collection, Store
from mobileclip.collections.index import MARK
from mobileclip.engines import LocalEngine, Retries
from tests.collections.pictures import add, assert_same_rows, counts, draw, draw_all
from tests.crash.world import COMMANDS
from tests.preloaded import preloaded
from tests.survives import Survival
from tests.waiting import wait_for

ROOT = Path(__file__).parents[3]
# Which form of a model is the fastest, and so the last digits, depends on the moment.
add = partial(add, precision="float32")
JOB = """
import sys
from mobileclip.collections import Collection, IndexOptions
options = IndexOptions(segment_rows=int(sys.argv[3]), batch_size=4, precision="float32", show_progress=False)
Collection.open(sys.argv[1]).add(sys.argv[2], options=options)
"""


def num_rows(index):
    return len(Store.open(index).values("id"))


def test_a_killed_job_is_finished_by_the_next(make, index, tmp_path):
    photos = draw_all(tmp_path / "photos", range(120))
    job = preloaded().start("-c", JOB, index.path, photos, 8, folder=tmp_path)
    wait_for(lambda: num_rows(index.path) >= 16, job, every=0.005)
    job.kill()
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    kept = num_rows(index.path)
    assert 16 <= kept < 120
    assert counts(add(Collection.open(index.path), photos)) == (120 - kept, 0, kept, 0)
    assert_same_rows(Collection.open(index.path), make("whole", photos, precision="float32"))


@pytest.mark.parametrize("event", ["open", "os.rename"])
def test_a_job_that_is_killed_while_it_makes_an_index_locks_nobody_out(event, tmp_path):
    survival = Survival.of(COMMANDS["index"], tmp_path / "trial")
    making = [one.startswith(f"{event} /idx/.mobileclip-") for one in survival.operations]
    assert survival.problems(survival.at(making.index(True) + 1)) == []


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


def assert_alone_set_aside(report, killer):
    (aside,) = report.set_aside
    assert (aside.unit, "ended with exit code -9" in aside.reason) == (str(killer), True)


@pytest.mark.slow
@pytest.mark.parametrize("engine_workers", [None, 1, 2])
def test_a_picture_that_kills_its_worker_is_set_aside_alone_and_tried_apart_by_the_next_run(
    index, tmp_path, killing, engine_workers
):
    photos = draw_all(tmp_path / "photos", range(255), digits=3)
    killer = draw(photos / f"100-{killing}", 300)
    given = {"num_workers": 2}
    if engine_workers:
        retries = Retries(pause_seconds=0.0)
        given = {"engine": LocalEngine(num_workers=engine_workers, devices=("cpu",), apart=True, retries=retries)}
    report = add(index, photos, **given)
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, len(index)) == (255, 255)
    draw(photos / "later.png", 400)
    report = add(index, photos, **given)
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, report.num_unchanged) == (1, 255)
    # Whatever was wrong with it is mended.
    killer.rename(photos / "harmless.png")
    assert add(index, photos).num_encoded == 1


@pytest.mark.slow
def test_a_job_that_dies_of_a_picture_that_it_reads_itself_is_finished_by_the_next(index, tmp_path, killing):
    photos = draw_all(tmp_path / "photos", range(40), digits=3)
    killer = draw(photos / f"020-{killing}", 300)
    job = subprocess.run([sys.executable, "-c", JOB, index.path, photos, "4096"], cwd=ROOT, check=False)
    assert (job.returncode, num_rows(index.path)) == (-signal.SIGKILL, 0)
    again = Collection.open(index.path)
    report = add(again, photos)
    assert_alone_set_aside(report, killer)
    assert (report.num_encoded, len(again)) == (40, 40)
    assert not (index.path / MARK).exists()
