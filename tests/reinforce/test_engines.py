"""Engines change nothing of what is stored: the same shards from one process, two, and a Ray pool."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.data import AugmentationSpec, read_card, read_reinforced_samples
from mobileclip.data.shards.sidecars import MANIFEST
from mobileclip.engines import RUN, Listener, LocalEngine, RayEngine
from mobileclip.reinforce import Manifest, ReinforcementSpec, reinforce
from mobileclip.reinforce.worker import ReinforcementWork
from mobileclip.storage import LOCK
from tests.engines.works import workers_of_this_process
from tests.object_store import object_store
from tests.reinforce.conftest import AT_ONCE
from tests.reinforce.program import write_spec
from tests.survives import Moment, Program, survives

POLICY = AugmentationSpec(size=64, reference_size=64, scale=(0.3, 1.0))


def make_spec(shards, output, teachers, **choices) -> ReinforcementSpec:
    choices = {"augmentation": POLICY, "num_augmentations": 2, "seed": 7, "layout": "npz", "batch_size": 2, **choices}
    return ReinforcementSpec(source=shards, output=output, teachers=teachers, **choices)


def assert_same_shards(names, made: Path, expected: Path) -> None:
    """Parameters and captions to the bit, embeddings to 1e-6."""
    assert sorted(names) == sorted(Manifest(expected))
    for name in names:
        ours, theirs = (read_reinforced_samples([directory / name]) for directory in (made, expected))
        for one, other in zip(ours, theirs, strict=True):
            for what in ("key", "augmentations", "captions", "syn_captions"):
                assert getattr(one, what) == getattr(other, what)
            np.testing.assert_allclose(one.image_emb, other.image_emb, atol=1e-6)
            np.testing.assert_allclose(one.text_emb, other.text_emb, atol=1e-6)


@pytest.fixture
def alone(make_shards, small_teachers, tmp_path):
    """What one worker in this process makes."""
    shards = make_shards(4, 5)
    spec = make_spec(shards, tmp_path / "alone", small_teachers)
    report = reinforce(spec, engine=LocalEngine(num_workers=1), show_progress=False)
    assert report.num_samples == 20
    return shards, tmp_path / "alone"


@pytest.mark.slow
def test_two_processes_make_the_same(alone, small_teachers, tmp_path, capsys):
    shards, expected = alone
    spec = make_spec(shards, tmp_path / "two", small_teachers)
    report = reinforce(spec, engine=LocalEngine(num_workers=2, num_threads=1))
    assert "reinforcing: 20/20" in capsys.readouterr().err
    assert report.num_samples == 20
    assert read_card(tmp_path / "two") == read_card(expected)
    assert_same_shards(Manifest(tmp_path / "two"), tmp_path / "two", expected)


class Noting(Listener):
    """Notes the shards, and does something at the first sample or entry."""

    def __init__(self, *, at_sample=None, at_entry=None):
        self.names, self._at_sample, self._at_entry = [], at_sample, at_entry

    def advanced(self, count):  # noqa: ARG002 - as a `Listener` does
        at_sample, self._at_sample = self._at_sample, None
        if at_sample is not None:
            at_sample()

    def finished(self, unit, entry):  # noqa: ARG002 - as a `Listener` does
        self.names.append(entry.shard)
        at_entry, self._at_entry = self._at_entry, None
        if at_entry is not None:
            at_entry()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(alone, small_teachers, tmp_path):
    shards, expected = alone
    spec = make_spec(shards, tmp_path / "killed", small_teachers)
    (tmp_path / "killed").mkdir()
    killed = []

    def kill_one():
        killed.append(workers_of_this_process()[0])
        os.kill(killed[0], signal.SIGKILL)

    told = Noting(at_sample=kill_one)
    engine = LocalEngine(num_workers=2, num_threads=1, retries=AT_ONCE)
    engine.run(ReinforcementWork(spec=spec), spec.source.units(), told)
    assert killed
    assert_same_shards(told.names, tmp_path / "killed", expected)


def stored(folder: Path) -> dict[str, bytes]:
    """Return every file of an output; several workers enter shards in the order in which they finish them.

    The lock's file is empty, and whether it stays is the lock's own business. What runs say of themselves tells each
    time something else.
    """
    made = folder / "reinforced"
    files = {path.relative_to(made): path for path in made.rglob("*") if path.is_file() and path.name != LOCK}
    return in_order({str(name): path.read_bytes() for name, path in files.items() if RUN not in name.parts})


def in_order(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {MANIFEST: b"".join(sorted(files[MANIFEST].splitlines(keepends=True)))}


def num_stored(folder: Path) -> int:
    """Return how many shards the manifest names, without the line that may just be written."""
    manifest = folder / "reinforced" / MANIFEST
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


def endings(num_shards: int) -> list[Moment]:
    """Each fifth run is killed while it starts, the others after some shards."""
    started = Moment.drawn(4, 0, more=(0, 0), seconds=4.0)
    moments = Moment.drawn(20, 0, more=(0, num_shards // 20), seconds=0.1)
    moments[::5] = [attrs.evolve(moment, more=None) for moment in started]
    return moments


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "num_processes"), [("inline", 1), ("local", 1), ("local", 2), ("ray", 2)])
def test_killed_twenty_times_it_ends_with_the_same(tmp_path, engine, num_processes):
    if engine == "ray":
        import ray  # noqa: F401
    program = Program(
        line=("-m", "tests.reinforce.program", "spec.json", engine, str(num_processes)),
        prepare=partial(write_spec, num_shards=300, num_samples=8, broken=(150, 1)),
        progress=num_stored,
        most=299,
        read=stored,
        ends_by_itself=engine != "ray",
    )
    survives(program, endings(300), tmp_path)


@pytest.mark.slow
def test_a_driver_whose_machine_goes_is_followed_by_another(tmp_path):
    """Nothing that was finished is lost."""
    with object_store() as store:

        def in_store(_: Path) -> dict[str, bytes]:
            files = {name.removeprefix("made/out/"): store.objects.pop(name) for name in list(store.objects)}
            return in_order({name: content for name, content in files.items() if not name.startswith(f"{RUN}/")})

        def num_in_store(_: Path) -> int:
            files = [store.objects.get(f"made/out/{name}", b"") for name in (MANIFEST, "manifest.tail.jsonl")]
            return len({line for file in files for line in file.splitlines()})

        program = Program(
            line=("-m", "tests.reinforce.program", "spec.json", "inline", "1"),
            prepare=partial(write_spec, num_shards=100, num_samples=4, broken=(50, 1), output="s3://made/out"),
            progress=num_in_store,
            most=99,
            read=in_store,
        )
        survives(program, endings(100), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ray_makes_the_same_with_an_actor_killed_midway(alone, small_teachers, tmp_path):
    import ray  # noqa: F401

    shards, expected = alone
    spec = make_spec(shards, tmp_path / "ray", small_teachers)
    (tmp_path / "ray").mkdir()

    def kill_one():
        actors = subprocess.run(["pgrep", "-f", "ray::_Actor"], check=False, capture_output=True, text=True)
        os.kill(int(actors.stdout.split()[0]), signal.SIGKILL)

    told = Noting(at_entry=kill_one)
    RayEngine(max_workers=2, retries=AT_ONCE).run(ReinforcementWork(spec=spec), spec.source.units(), told)
    assert_same_shards(told.names, tmp_path / "ray", expected)
