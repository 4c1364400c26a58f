"""A job that is killed at any moment loses nothing that it finished, and the next one does the rest."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections.manifest import read_manifest
from tests.collections.pictures import contents, draw

# Which form of a model is the fastest, and so the last digits, depends on the moment.
OPTIONS = IndexOptions(precision="float32", show_progress=False)
ROOT = Path(__file__).parents[2]
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
    return sum(one.num_rows - len(one.removed) for one in read_manifest(index).segments)


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
    job = start(index, photos, 8)
    job.stdout.readline()
    while num_rows(index) < 24:
        assert job.poll() is None
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()
    kept = num_rows(index)
    assert 24 <= kept < 120
    report = Collection.open(index).add(photos, options=OPTIONS)
    assert (report.num_unchanged, report.num_encoded) == (kept, 120 - kept)
    assert_as_undisturbed(index, photos, telling_file, tmp_path)


@pytest.mark.slow
def test_twenty_kills_and_changed_files_lose_and_double_nothing(tmp_path, telling_file):
    photos, index = tmp_path / "photos", tmp_path / "index"
    for number in range(3000):
        draw(photos / f"{number % 7}" / f"{number:04d}.png", number)
    (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Collection.create(index, ModelSource(checkpoint=str(telling_file)))
    chance = random.Random(0)
    for kill in range(20):
        before = num_rows(index)
        job = start(index, photos, 16)
        job.stdout.readline()
        wanted = min(before + chance.randrange(1, 120), 2900)
        deadline = time.monotonic() + 120
        while num_rows(index) < wanted and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() / 20)
        job.send_signal(signal.SIGKILL)
        job.wait()
        job.stdout.close()
        assert num_rows(index) >= before
        # Files change under it: one moves, one is drawn anew, one goes.
        there = sorted(photos.rglob("*.png"))
        moved, changed, gone = chance.sample(there, 3)
        moved.rename(photos / f"moved{kill}.png")
        draw(changed, 10_000 + kill)
        gone.unlink()
        if not (photos / "torn.png").exists():
            (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Collection.open(index).add(photos, options=OPTIONS)
    assert_as_undisturbed(index, photos, telling_file, tmp_path)
