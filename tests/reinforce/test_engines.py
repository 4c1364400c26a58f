"""Engines change nothing of what is stored: the same shards from one process, two, and a Ray pool."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.data import AugmentationSpec, read_card, read_reinforced_samples
from mobileclip.data.sources.shards import ShardUnit
from mobileclip.reinforce import LocalEngine, Manifest, RayEngine, ReinforcementSpec, reinforce
from tests.reinforce.kills import trial

POLICY = AugmentationSpec(size=64, reference_size=64, scale=(0.3, 1.0))


def make_spec(shards, output, teachers, **choices) -> ReinforcementSpec:
    choices = {"augmentation": POLICY, "num_augmentations": 2, "seed": 7, "layout": "npz", "batch_size": 2, **choices}
    return ReinforcementSpec(source=shards, output=output, teachers=teachers, **choices)


def assert_same(one: Path, other: Path) -> None:
    """Parameters and captions to the bit, embeddings to 1e-6."""
    assert set(Manifest(one)) == set(Manifest(other))
    assert read_card(one) == read_card(other)
    assert read_card(one).num_samples == read_card(other).num_samples > 0
    for name in sorted(Manifest(one)):
        ours, theirs = (list(read_reinforced_samples([directory / name])) for directory in (one, other))
        assert [sample.key for sample in ours] == [sample.key for sample in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.augmentations == b.augmentations
            assert a.captions == b.captions
            assert a.syn_captions == b.syn_captions
            np.testing.assert_allclose(a.image_emb, b.image_emb, atol=1e-6)
            np.testing.assert_allclose(a.text_emb, b.text_emb, atol=1e-6)


@pytest.fixture
def alone(make_shards, small_teachers, tmp_path):
    """What one worker in this process makes."""
    shards = make_shards(4, 5)
    spec = make_spec(shards, tmp_path / "alone", small_teachers)
    report = reinforce(spec, engine=LocalEngine(num_workers=1), show_progress=False)
    assert report.num_samples == 20
    return shards, tmp_path / "alone"


def test_two_processes_make_the_same(alone, small_teachers, tmp_path, capsys):
    shards, expected = alone
    spec = make_spec(shards, tmp_path / "two", small_teachers)
    report = reinforce(spec, engine=LocalEngine(num_workers=2, num_threads=1))
    assert "reinforcing: 20/20" in capsys.readouterr().err
    assert report.num_samples == 20
    assert_same(expected, tmp_path / "two")


def test_a_worker_that_is_killed_is_replaced(alone, small_teachers, tmp_path):
    shards, expected = alone
    spec = make_spec(shards, tmp_path / "killed", small_teachers)
    units = spec.source.units()
    (tmp_path / "killed").mkdir()
    killed = []

    def kill_one(_count):
        if not killed:
            killed.append(workers_of_this_process()[0])
            os.kill(killed[0], signal.SIGKILL)

    engine = LocalEngine(num_workers=2, num_threads=1)
    entries = list(engine.run(spec, units, kill_one))
    assert killed
    assert sorted(entry.shard for entry in entries) == [unit.name for unit in units]
    for entry in entries:
        stored = [sample.key for sample in read_reinforced_samples([tmp_path / "killed" / entry.shard])]
        assert stored == [sample.key for sample in read_reinforced_samples([expected / entry.shard])]


def workers_of_this_process() -> list[int]:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_worker_that_is_stopped_is_replaced(alone, small_teachers, tmp_path):
    """It would hold its unit, and the run, for ever."""
    shards, expected = alone
    spec = make_spec(shards, tmp_path / "stopped", small_teachers)
    (tmp_path / "stopped").mkdir()
    stopped = []

    def stop_one(_count):
        if not stopped:
            stopped.append(workers_of_this_process()[0])
            os.kill(stopped[0], signal.SIGSTOP)

    engine = LocalEngine(num_workers=2, num_threads=1, silence_seconds=3.0)
    entries = list(engine.run(spec, spec.source.units(), stop_one))
    assert stopped
    assert not Path(f"/proc/{stopped[0]}").exists(), "it is left to no one"
    assert sorted(entry.shard for entry in entries) == [unit.name for unit in spec.source.units()]
    for entry in entries:
        stored = [sample.key for sample in read_reinforced_samples([tmp_path / "stopped" / entry.shard])]
        assert stored == [sample.key for sample in read_reinforced_samples([expected / entry.shard])]


@attrs.frozen(kw_only=True)
class StuckUnit(ShardUnit):
    """Hangs where it is read, as a driver or a decoder may."""

    def read(self, report):
        time.sleep(600)
        return super().read(report)


@pytest.mark.slow
def test_a_unit_that_is_stuck_ends_the_run_in_time(make_shards, small_teachers, tmp_path):
    spec = make_spec(make_shards(2, 1), tmp_path / "out", small_teachers)
    (tmp_path / "out").mkdir()
    units = [StuckUnit(name=unit.name, path=unit.path) for unit in spec.source.units()]
    engine = LocalEngine(num_workers=2, num_threads=1, progress_seconds=15.0, max_attempts=1)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"too much for 1 worker processes, the last finished no sample for 15 s"):
        list(engine.run(spec, units, lambda _count: None))
    assert time.monotonic() - started < 60
    assert workers_of_this_process() == []


@pytest.mark.slow
def test_a_run_that_was_stopped_itself_blames_no_worker(alone, small_teachers, tmp_path):
    shards, _ = alone
    spec = make_spec(shards, tmp_path / "out", small_teachers)
    (tmp_path / "out").mkdir()
    before = []
    for entry in LocalEngine(num_workers=2, num_threads=1, silence_seconds=2.0).run(
        spec, spec.source.units(), lambda _count: None
    ):
        if not before:
            assert entry.num_samples
            before = workers_of_this_process()
            for worker in before:
                os.kill(worker, signal.SIGSTOP)
            time.sleep(3)  # and so is who asks for the entries
            for worker in before:
                os.kill(worker, signal.SIGCONT)
        else:
            assert set(workers_of_this_process()) <= set(before), "one was replaced"


def test_a_unit_that_kills_its_workers_stops_the_run(make_shards, small_teachers, tmp_path):
    spec = make_spec(make_shards(2, 1), tmp_path / "out", small_teachers)
    (tmp_path / "out").mkdir()

    from mobileclip.reinforce.engines.local import _Crew

    crew = _Crew(LocalEngine(), spec, [("cpu", 1)], lambda _count: None)
    assign = crew._assign
    crew._assign = lambda waiting: (assign(waiting), [member.process.kill() for member in crew._members])
    with pytest.raises(ValueError, match=r"00000000\.tar was too much for 3 worker .* exit code -9"):
        list(crew.run(spec.source.units()))


def test_what_goes_wrong_in_a_worker_is_said_here(make_shards, small_teachers, tmp_path):
    shards = make_shards(2, 1)
    missing = [type(small_teachers[0])(checkpoint=tmp_path / "nowhere.safetensors")]
    with pytest.raises(ValueError, match="nowhere"):
        reinforce(make_spec(shards, tmp_path / "out", missing), engine=LocalEngine(num_workers=2), show_progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "num_processes"), [("inline", 1), ("local", 1), ("local", 2), ("ray", 2)])
def test_killed_twenty_times_it_ends_with_the_same(tmp_path, engine, num_processes):
    if engine == "ray":
        pytest.importorskip("ray")
    trial(tmp_path, engine=engine, num_processes=num_processes, num_kills=20, num_shards=300, num_samples=8, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ray_makes_the_same_with_an_actor_killed_midway(alone, small_teachers, tmp_path):
    pytest.importorskip("ray")
    shards, expected = alone
    spec = make_spec(shards, tmp_path / "ray", small_teachers)
    units = spec.source.units()
    (tmp_path / "ray").mkdir()
    entries = []
    for entry in RayEngine(min_workers=2, max_workers=2).run(spec, units, lambda _count: None):
        if not entries:
            actors = subprocess.run(["pgrep", "-f", "ray::MapWorker"], check=False, capture_output=True, text=True)
            os.kill(int(actors.stdout.split()[0]), signal.SIGKILL)
        entries.append(entry)
    assert sorted(entry.shard for entry in entries) == [unit.name for unit in units]
    for entry in entries:
        stored = list(read_reinforced_samples([tmp_path / "ray" / entry.shard]))
        for one, other in zip(stored, read_reinforced_samples([expected / entry.shard]), strict=True):
            assert one.key == other.key
            assert one.augmentations == other.augmentations
            np.testing.assert_allclose(one.image_emb, other.image_emb, atol=1e-6)
