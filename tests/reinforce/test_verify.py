"""Verification: a good directory has no problems, and every kind of damage has a name."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from mobileclip.cli import main
from mobileclip.data import LAYOUTS, AugmentationSpec, read_card, read_reinforced_samples, write_card, write_shard
from mobileclip.reinforce import InlineEngine, Manifest, ReinforcementSpec, reinforce, verify
from mobileclip.reinforce.teachers import build_ensemble
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
    assert 0 < found.largest_difference < 2e-2
    assert "no problems" in str(found)


def test_embeddings_of_something_else(directory):
    def swap(sample):
        return attrs.evolve(sample, image_emb=sample.image_emb[::-1]) if sample.key == "1-2" else sample

    rewrite(directory, "1.tar", swap)
    found = check(directory)
    assert set(found.counts) == {"wrong_embedding"}
    assert found.problems[0].where == "1.tar/1-2"
    assert "image_emb of mci-" in found.problems[0].detail


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


def test_it_computes_where_every_command_does(directory, monkeypatch):
    built = []

    def build(specs, device):
        built.append(device)
        return build_ensemble(specs, "cpu")

    monkeypatch.setattr("mobileclip.hardware.devices.all_devices", lambda: ("cuda:0", "cuda:1"))
    monkeypatch.setattr(sys.modules[verify.__module__], "build_ensemble", build)
    assert check(directory).is_good
    assert check(directory, device="cpu").is_good
    assert built == ["cuda:0", "cpu"]


def test_norms(directory):
    rewrite(directory, "0.tar", lambda one: attrs.evolve(one, text_emb=one.text_emb * np.float32(1.5)))
    found = verify(directory, num_samples=0, show_progress=False)
    assert found.counts == {"wrong_norm": 8}, "four samples, two teachers"
    assert found.num_replayed == 0


def test_too_few_augmentations(directory):
    rewrite(
        directory,
        "0.tar",
        lambda one: attrs.evolve(one, augmentations=one.augmentations[:1], image_emb=one.image_emb[:1]),
    )
    assert verify(directory, num_samples=0, show_progress=False).counts == {"wrong_augmentations": 4}


def test_keys_in_two_shards(directory):
    shutil.copy(directory / "0.tar", directory / "1.tar")
    manifest = Manifest(directory)
    manifest.add(attrs.evolve(manifest["1.tar"], num_bytes=(directory / "1.tar").stat().st_size))
    found = check(directory)
    assert found.counts == {"duplicate_key": 4}
    assert found.problems[0].detail == "it is in 0.tar too"


def test_files_that_are_missing_cut_or_unknown(directory):
    shutil.copy(directory / "0.tar", directory / "2.tar")
    (directory / "0.tar").unlink()
    whole = (directory / "1.tar").read_bytes()
    (directory / "1.tar").write_bytes(whole[: len(whole) // 2])
    found = check(directory)
    assert {"missing_shard", "unknown_shard", "wrong_size", "wrong_count", "truncated_shard"} <= set(found.counts)
    assert not found.is_good


def test_another_teacher_and_another_count(directory, teachers):
    card = read_card(directory)
    first = attrs.evolve(card.teachers[0], weights_sha256="0" * 64)
    write_card(directory, attrs.evolve(card, teachers=(first, *card.teachers[1:]), num_samples=9))
    assert set(check(directory).counts) == {"wrong_teacher", "wrong_card"}


def test_teachers_that_no_spec_describes(make_shards, teachers, tmp_path):
    spec = ReinforcementSpec(
        source=make_shards(1), output=tmp_path / "out", augmentation=POLICY, num_augmentations=2, layout="npz"
    )
    reinforce(spec, engine=InlineEngine(teachers=teachers), show_progress=False)
    found = check(tmp_path / "out")
    assert found.is_good
    assert found.num_replayed == 0
    assert "does not say how to build the teachers" in found.notes[0]
    given = check(tmp_path / "out", teachers=teachers)
    assert given.is_good
    assert given.num_replayed == 5
    assert given.largest_difference < 1e-5


def test_a_directory_without_a_card(tmp_path):
    with pytest.raises(ValueError, match=r"holds no reinforcement\.json"):
        check(tmp_path)


def test_the_command(directory, capsys):
    main(["data", "verify", str(directory), "--samples", "3", "--quiet"])
    said = capsys.readouterr().out
    assert "8 samples in 2 shards read" in said
    assert "3 samples replayed" in said
    (directory / "0.tar").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["data", "verify", str(directory), "--samples", "0", "--quiet"])
    assert stopped.value.code == 1
    assert "missing_shard: 0.tar: the manifest names it, but there is no file" in capsys.readouterr().out
