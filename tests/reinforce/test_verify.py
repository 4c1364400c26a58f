"""Verification: a good directory has no problems, and every kind of damage has a name."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from mobileclip import storage
from mobileclip.cli import main
from mobileclip.data import LAYOUTS, AugmentationSpec, read_card, read_reinforced_samples, write_card, write_shard
from mobileclip.engines import InlineEngine, LocalEngine, Retries
from mobileclip.reinforce import Manifest, ReinforcementSpec, ShardEntry, build_ensemble, reinforce, verify
from mobileclip.reinforce.verification import choose_tasks
from tests.data.made_samples import write_raw
from tests.errors import fails
from tests.reinforce.conftest import plain_sample

POLICY = AugmentationSpec(size=64, reference_size=64, scale=(0.3, 1.0))


@pytest.fixture(scope="module", params=LAYOUTS)
def reinforced(request, small_teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    shards = [
        write_shard(
            folder / "plain" / f"{index}.tar", [plain_sample(f"{index}-{each}", 10 * index + each) for each in range(4)]
        )
        for index in range(2)
        if (folder / "plain").mkdir(exist_ok=True) is None
    ]
    spec = ReinforcementSpec(
        source=shards,
        output=folder / "out",
        teachers=small_teachers,
        augmentation=POLICY,
        num_augmentations=2,
        layout=request.param,
    )
    reinforce(spec, show_progress=False)
    return folder / "out"


# Where nothing depends on how embeddings are stored.
one_layout = pytest.mark.parametrize("reinforced", ["compact8"], indirect=True)


@pytest.fixture
def directory(reinforced, tmp_path):
    return Path(shutil.copytree(reinforced, tmp_path / "out"))


def check(directory, **choices):
    return verify(directory, num_samples=8, show_progress=False, **choices)


def rewrite(directory: Path, shard: str, change) -> None:
    """Replace the samples of a shard, and what the manifest says of its size."""
    layout = read_card(directory).layout
    samples = [change(sample) for sample in read_reinforced_samples([directory / shard])]
    write_shard(directory / shard, samples, layout=layout)
    manifest = Manifest(directory)
    manifest.add(attrs.evolve(manifest[shard], num_bytes=(directory / shard).stat().st_size))


def test_a_good_directory_has_no_problems(directory):
    found = check(directory)
    assert found.is_good, found
    assert (found.num_shards, found.num_samples, found.num_replayed) == (2, 8, 8)
    assert 0 <= found.largest_difference < 2e-2
    assert found.largest_difference > 0 or read_card(directory).layout == "npz", "the other layouts round"
    assert "no problems" in str(found)


def test_embeddings_of_something_else(directory):
    def swap(sample):
        return attrs.evolve(sample, image_emb=sample.image_emb[::-1]) if sample.key == "1-2" else sample

    rewrite(directory, "1.tar", swap)
    found = check(directory)
    assert set(found.counts) == {"wrong_embedding"}
    assert found.problems[0].where == "1.tar/1-2"
    assert "image_emb of mci-" in found.problems[0].detail


@one_layout
def test_another_image(directory):
    stream = io.BytesIO()
    Image.new("RGB", (52, 32), "red").save(stream, "PNG")
    rewrite(directory, "1.tar", lambda one: attrs.evolve(one, image=stream.getvalue()) if one.key == "1-2" else one)
    assert check(directory).counts == {"wrong_image": 1}


def test_other_augmentations(directory):
    def flip(sample):
        return attrs.evolve(sample, augmentations=sample.augmentations[::-1]) if sample.key == "0-1" else sample

    rewrite(directory, "0.tar", flip)
    assert check(directory).counts == {"wrong_replay": 1}


@one_layout
def test_it_computes_where_every_command_does(directory, monkeypatch):
    built = []

    def build(specs, device):
        built.append(device)
        return build_ensemble(specs, "cpu")

    monkeypatch.setattr("mobileclip.hardware.all_devices", lambda: ("cuda:0", "cuda:1"))
    monkeypatch.setattr(sys.modules[verify.__module__], "build_ensemble", build)
    assert check(directory).is_good
    assert check(directory, device="cpu").is_good
    assert built == ["cuda:0", "cpu"]


def test_norms(directory):
    rewrite(directory, "0.tar", lambda one: attrs.evolve(one, text_emb=one.text_emb * np.float32(1.5)))
    found = verify(directory, num_samples=0, show_progress=False)
    assert found.counts == {"wrong_norm": 8}, "four samples, two teachers"
    assert (found.num_replayed, found.largest_difference) == (0, 0)


@one_layout
def test_too_few_augmentations(directory):
    rewrite(
        directory,
        "0.tar",
        lambda one: attrs.evolve(one, augmentations=one.augmentations[:1], image_emb=one.image_emb[:1]),
    )
    assert verify(directory, num_samples=0, show_progress=False).counts == {"wrong_augmentations": 4}


@one_layout
def test_keys_in_two_shards(directory):
    shutil.copy(directory / "0.tar", directory / "1.tar")
    manifest = Manifest(directory)
    manifest.add(attrs.evolve(manifest["1.tar"], num_bytes=(directory / "1.tar").stat().st_size))
    found = check(directory)
    assert found.counts == {"duplicate_key": 4}
    assert found.problems[0].detail == "it is in 0.tar too"


@one_layout
def test_a_key_twice_in_one_shard(directory):
    samples = list(read_reinforced_samples([directory / "0.tar"]))
    members = {one.key: one for one in samples}
    with tarfile.open(directory / "0.tar") as archive:
        entries = [(one.name, archive.extractfile(one).read()) for one in archive.getmembers()]
    first = [(name, content) for name, content in entries if name.startswith(samples[0].key)]
    write_raw(directory / "0.tar", entries + first)
    manifest = Manifest(directory)
    size = (directory / "0.tar").stat().st_size
    manifest.add(attrs.evolve(manifest["0.tar"], num_samples=len(members) + 1, num_bytes=size))
    found = check(directory)
    assert found.counts == {"duplicate_key": 1, "wrong_card": 1}
    assert found.problems[-1].where == f"0.tar/{samples[0].key}"


def test_a_sample_that_cannot_be_read_is_told_and_not_counted(directory):
    with tarfile.open(directory / "0.tar") as archive:
        entries = [(one.name, archive.extractfile(one).read()) for one in archive.getmembers()]
    broken = {f"0-1.{kind}" for kind in ("npz", "pth.gz", "reinforced")}
    write_raw(directory / "0.tar", [(name, b"broken" if name in broken else content) for name, content in entries])
    manifest = Manifest(directory)
    manifest.add(attrs.evolve(manifest["0.tar"], num_bytes=(directory / "0.tar").stat().st_size))
    found = verify(directory, num_samples=0, show_progress=False)
    assert (found.num_samples, found.num_checked) == (7, 7)
    assert found.counts["wrong_count"] == 1


@one_layout
def test_some_shards_and_some_rows(directory):
    found = verify(directory, num_samples=3, num_shards=1, num_rows=2, show_progress=False)
    assert found.is_good
    assert (found.num_shards, found.num_samples, found.num_checked, found.num_replayed) == (1, 4, 2, 2)
    assert "4 samples in 1 shards read, drawn from 8 in 2\n2 of them, drawn at random, checked" in str(found)
    assert verify(directory, num_samples=0, num_shards=1, show_progress=False).num_checked == 4
    # What is not read is looked for all the same.
    for name in ("0.tar", "1.tar"):
        (directory / name).write_bytes((directory / name).read_bytes() + b"x")
    assert verify(directory, num_samples=0, num_shards=1, show_progress=False).counts == {"wrong_size": 2}


@one_layout
def test_what_is_not_drawn_is_not_parsed(directory):
    rewrite(directory, "0.tar", lambda one: attrs.evolve(one, text_emb=one.text_emb * np.float32(1.5)))
    found = verify(directory, num_samples=0, num_rows=1, show_progress=False)
    assert found.counts == {"wrong_norm": 2}, "one sample of the shard, two teachers"


@pytest.mark.slow
@one_layout
def test_several_processes_find_the_same(directory):
    rewrite(directory, "1.tar", lambda one: attrs.evolve(one, text_emb=one.text_emb * np.float32(1.5)))
    shutil.copy(directory / "0.tar", directory / "2.tar")
    manifest = Manifest(directory)
    manifest.add(attrs.evolve(manifest["0.tar"], shard="2.tar"))
    one = check(directory, num_rows=3)
    assert len(one.counts) >= 2
    assert check(directory, num_rows=3, engine=LocalEngine(num_workers=2, devices=("cpu",))) == one


@one_layout
def test_a_shard_whose_store_is_away_is_tried_again_and_then_named(directory, monkeypatch):
    """And the rest is checked all the same."""
    tries = []

    def opened(path, *arguments, **options):
        if path.endswith("0.tar"):
            tries.append(path)
            raise ConnectionError("the store is away")
        return open_read(path, *arguments, **options)

    open_read = storage.open_read
    monkeypatch.setattr(storage, "open_read", opened)
    engine = InlineEngine(device="cpu", retries=Retries(tries=2, pause_seconds=0.0))
    found = verify(directory, num_samples=0, engine=engine, show_progress=False)
    assert len(tries) == 2
    assert [(one.kind, one.where, one.detail) for one in found.problems] == [
        ("unreadable_shard", "0.tar", "after 0 samples: ConnectionError: the store is away")
    ]
    assert found.num_samples == 4


@one_layout
def test_shards_in_folders(directory):
    entries = Manifest(directory).entries()
    (directory / "manifest.jsonl").unlink()
    manifest = Manifest(directory)
    for number, entry in enumerate(entries):
        (directory / str(number)).mkdir()
        (directory / entry.shard).rename(directory / str(number) / "0.tar")
        manifest.add(attrs.evolve(entry, shard=f"{number}/0.tar"))
    found = check(directory)
    assert found.is_good, found
    assert found.num_replayed == 8
    shutil.copy(directory / "1" / "0.tar", directory / "1" / "1.tar")
    assert check(directory).counts == {"unknown_shard": 1}


@pytest.fixture(scope="module")
def entries():
    return [ShardEntry(shard=f"{n}.tar", fingerprint="", num_samples=10_000, num_bytes=1) for n in range(20_000)]


class TestChoice:
    """What is read of very many shards, from their counts alone."""

    def test_no_list_of_samples_is_made(self, entries):
        tracemalloc.start()
        tasks = choose_tasks(entries, num_samples=32, num_shards=None, num_rows=None, seed=0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [task.entry for task in tasks] == entries
        assert peak < 1000 * len(entries), "of 200 million samples"
        rows = [(task.entry.shard, row) for task in tasks for row in task.replayed]
        assert len(set(rows)) == 32
        assert len({shard for shard, _ in rows}) > 25
        assert all(0 <= row < 10_000 for _, row in rows)
        assert max(row for _, row in rows) > 5_000

    def test_shards_rows_and_what_is_computed_again(self, entries):
        tasks = choose_tasks(entries, num_samples=100, num_shards=7, num_rows=20, seed=1)
        assert len({task.entry.shard for task in tasks}) == 7
        assert [int(task.entry.shard[:-4]) for task in tasks] == sorted(int(task.entry.shard[:-4]) for task in tasks)
        assert all(len(set(task.rows)) == 20 and task.replayed < set(task.rows) for task in tasks)
        assert sum(len(task.replayed) for task in tasks) == 100
        assert tasks == choose_tasks(entries, num_samples=100, num_shards=7, num_rows=20, seed=1)
        assert tasks != choose_tasks(entries, num_samples=100, num_shards=7, num_rows=20, seed=2)

    def test_more_than_there_is_means_all(self, entries):
        (task,) = choose_tasks(entries[:1], num_samples=10**6, num_shards=5, num_rows=10**6, seed=0)
        assert task.rows is None
        assert task.replayed == frozenset(range(10_000))
        assert choose_tasks([], num_samples=3, num_shards=None, num_rows=None, seed=0) == []

    def test_every_sample_is_as_likely(self):
        entries = [ShardEntry(shard=f"{n}", fingerprint="", num_samples=n, num_bytes=1) for n in (1, 2, 5)]
        drawn = Counter()
        for seed in range(400):
            for task in choose_tasks(entries, num_samples=2, num_shards=None, num_rows=None, seed=seed):
                drawn.update((task.entry.shard, row) for row in task.replayed)
        assert len(drawn) == 8
        assert all(60 < count < 140 for count in drawn.values()), "100 each are expected"


@one_layout
def test_files_that_are_missing_cut_or_unknown(directory):
    shutil.copy(directory / "0.tar", directory / "2.tar")
    (directory / "0.tar").unlink()
    whole = (directory / "1.tar").read_bytes()
    (directory / "1.tar").write_bytes(whole[: len(whole) // 2])
    found = check(directory)
    assert {"missing_shard", "unknown_shard", "wrong_size", "wrong_count", "truncated_shard"} <= set(found.counts)
    assert not found.is_good


@one_layout
def test_another_teacher_and_another_count(directory, teachers):
    card = read_card(directory)
    first = attrs.evolve(card.teachers[0], weights_sha256="0" * 64)
    write_card(directory, attrs.evolve(card, teachers=(first, *card.teachers[1:]), num_samples=9))
    assert set(check(directory).counts) == {"wrong_teacher", "wrong_card"}


def test_teachers_that_no_spec_describes(make_shards, teachers, tmp_path):
    spec = ReinforcementSpec(
        source=make_shards(1), output=tmp_path / "out", augmentation=POLICY, num_augmentations=2, layout="npz"
    )
    reinforce(spec, teachers=teachers, show_progress=False)
    found = check(tmp_path / "out")
    assert found.is_good
    assert found.num_replayed == 0
    assert "does not say how to build the teachers" in found.notes[0]
    given = check(tmp_path / "out", teachers=teachers)
    assert given.is_good
    assert given.num_replayed == 5
    assert given.largest_difference < 1e-5


def test_a_directory_without_a_card(tmp_path):
    with fails(ValueError):
        check(tmp_path)


@one_layout
def test_the_command(directory, capsys):
    main(["data", "check", str(directory), "--samples", "3", "--quiet"])
    said = capsys.readouterr().out
    assert "8 samples in 2 shards read" in said
    assert "3 samples replayed" in said
    main(["data", "check", str(directory), "--samples", "0", "--num-shards", "1", "--num-rows", "2", "--quiet"])
    assert "2 of them, drawn at random, checked" in capsys.readouterr().out
    (directory / "0.tar").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(directory), "--samples", "0", "--quiet"])
    assert stopped.value.code == 1
    assert "missing_shard: 0.tar: the manifest lists it, but the file is missing" in capsys.readouterr().out
