"""Verification: a good directory has no problems, and every kind of damage has a name."""

from __future__ import annotations

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
from tests.build.image_files import encoded
from tests.data.made_samples import write_raw
from tests.errors import fails, told
from tests.reinforce.conftest import plain_sample

POLICY = AugmentationSpec(size=64, reference_size=64, scale=(0.3, 1.0))


@pytest.fixture(scope="module", params=LAYOUTS)
def reinforced(request, small_teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for index in range(2):
        samples = [plain_sample(f"{index}-{each}", 10 * index + each) for each in range(4)]
        write_shard(folder / f"{index}.tar", samples)
    spec = ReinforcementSpec(
        source=folder / "{0..1}.tar",
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


def note(directory: Path, shard: str, **changes) -> None:
    """Let the manifest say what is so of a shard."""
    manifest = Manifest(directory)
    manifest.add(attrs.evolve(manifest[shard], num_bytes=(directory / shard).stat().st_size, **changes))


def rewrite(directory: Path, shard: str, change, key: str = "") -> None:
    """Replace the samples of a shard whose keys begin with one, and what the manifest says of its size."""
    read = list(read_reinforced_samples([directory / shard]))
    changed = [change(sample) if sample.key.startswith(key) else sample for sample in read]
    write_shard(directory / shard, changed, layout=read_card(directory).layout)
    note(directory, shard)


def longer(sample):
    return attrs.evolve(sample, text_emb=sample.text_emb * np.float32(1.5))


def test_a_good_directory_has_no_problems(directory):
    found = check(directory)
    assert found.is_good, found
    assert (found.num_shards, found.num_samples, found.num_replayed) == (2, 8, 8)
    assert 0 <= found.largest_difference < 2e-2
    assert found.largest_difference > 0 or read_card(directory).layout == "npz", "the other layouts round"
    assert "no problems" in str(found)


def test_embeddings_of_something_else(directory):
    rewrite(directory, "1.tar", lambda one: attrs.evolve(one, image_emb=one.image_emb[::-1]), "1-2")
    found = check(directory)
    assert set(found.counts) == {"wrong_embedding"}
    assert found.problems[0].where == "1.tar/1-2"
    assert "image_emb of mci-" in found.problems[0].detail


def test_other_augmentations(directory):
    rewrite(directory, "0.tar", lambda one: attrs.evolve(one, augmentations=one.augmentations[::-1]), "0-1")
    assert check(directory).counts == {"wrong_replay": 1}


def fewer(sample):
    return attrs.evolve(sample, augmentations=sample.augmentations[:1], image_emb=sample.image_emb[:1])


@one_layout
def test_another_image_and_too_few_augmentations(directory):
    other = encoded(Image.new("RGB", (52, 32), "red"), "PNG")
    rewrite(directory, "1.tar", lambda one: attrs.evolve(one, image=other), "1-2")
    assert check(directory).counts == {"wrong_image": 1}
    rewrite(directory, "0.tar", fewer)
    assert verify(directory, num_samples=0, show_progress=False).counts == {"wrong_augmentations": 4}


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
    rewrite(directory, "0.tar", longer)
    found = verify(directory, num_samples=0, show_progress=False)
    assert found.counts == {"wrong_norm": 8}, "four samples, two teachers"
    assert (found.num_replayed, found.largest_difference) == (0, 0)
    # What is not drawn is not parsed.
    assert verify(directory, num_samples=0, num_rows=1, show_progress=False).counts == {"wrong_norm": 2}


@one_layout
def test_keys_in_two_shards(directory):
    shutil.copy(directory / "0.tar", directory / "1.tar")
    note(directory, "1.tar")
    found = check(directory)
    assert found.counts == {"duplicate_key": 4}
    assert "0.tar" in found.problems[0].detail


def members(path):
    with tarfile.open(path) as archive:
        return [(one.name, archive.extractfile(one).read()) for one in archive.getmembers()]


@one_layout
def test_a_key_twice_in_one_shard(directory):
    entries = members(directory / "0.tar")
    write_raw(directory / "0.tar", entries + [one for one in entries if one[0].startswith("0-0")])
    note(directory, "0.tar", num_samples=5)
    found = check(directory)
    assert found.counts == {"duplicate_key": 1, "wrong_card": 1}
    assert found.problems[-1].where == "0.tar/0-0"


def test_a_sample_that_cannot_be_read_is_told_and_not_counted(directory):
    broken = {f"0-1.{kind}" for kind in ("npz", "pth.gz", "reinforced")}
    entries = [(name, b"broken" if name in broken else content) for name, content in members(directory / "0.tar")]
    write_raw(directory / "0.tar", entries)
    note(directory, "0.tar")
    found = verify(directory, num_samples=0, show_progress=False)
    assert (found.num_samples, found.num_checked) == (7, 7)
    assert found.counts["wrong_count"] == 1


@one_layout
def test_some_shards_and_some_rows(directory):
    found = verify(directory, num_samples=3, num_shards=1, num_rows=2, show_progress=False)
    assert found.is_good
    assert (found.num_shards, found.num_samples, found.num_checked, found.num_replayed) == (1, 4, 2, 2)
    told(str(found), "4 samples in 1 shards", "8 samples in 2 shards", "2 of these")
    assert verify(directory, num_samples=0, num_shards=1, show_progress=False).num_checked == 4
    # What is not read is looked for all the same.
    for name in ("0.tar", "1.tar"):
        (directory / name).write_bytes((directory / name).read_bytes() + b"x")
    assert verify(directory, num_samples=0, num_shards=1, show_progress=False).counts == {"wrong_size": 2}


@pytest.mark.slow
@one_layout
def test_several_processes_find_the_same(directory):
    rewrite(directory, "1.tar", longer)
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
    (problem,) = found.problems
    assert (problem.kind, problem.where, found.num_samples) == ("unreadable_shard", "0.tar", 4)
    assert "the store is away" in problem.detail


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
        one, again, other = (
            choose_tasks(entries, num_samples=100, num_shards=7, num_rows=20, seed=seed) for seed in (1, 1, 2)
        )
        assert one == again != other
        shards = [int(task.entry.shard[:-4]) for task in one]
        assert shards == sorted(set(shards))
        assert len(shards) == 7
        assert all(len(set(task.rows)) == 20 and task.replayed < set(task.rows) for task in one)
        assert sum(len(task.replayed) for task in one) == 100

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


def test_a_directory_without_a_card_and_teachers_that_no_spec_describes(make_shards, teachers, tmp_path):
    with fails(ValueError):
        check(tmp_path)
    spec = ReinforcementSpec(
        source=make_shards(1), output=tmp_path / "out", augmentation=POLICY, num_augmentations=2, layout="npz"
    )
    reinforce(spec, teachers=teachers, show_progress=False)
    found = check(tmp_path / "out")
    assert (found.is_good, found.num_replayed, len(found.notes)) == (True, 0, 1)
    given = check(tmp_path / "out", teachers=teachers)
    assert (given.is_good, given.num_replayed) == (True, 5)
    assert given.largest_difference < 1e-5


@one_layout
def test_the_command(directory, capsys):
    command = ["data", "check", str(directory), "--quiet", "--samples"]
    main([*command, "3"])
    told(capsys.readouterr().out, "8 samples in 2 shards", "3 samples replayed")
    main([*command, "0", "--num-shards", "1", "--num-rows", "2"])
    told(capsys.readouterr().out, "2 of these")
    (directory / "0.tar").unlink()
    with pytest.raises(SystemExit, match=r"^1$"):
        main([*command, "0"])
    told(capsys.readouterr().out, "missing_shard: 0.tar")
