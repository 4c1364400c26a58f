"""Batches of images and labels: from shards and from folders, the same ones again, and what is left out."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mobileclip.data import AugmentationSpec, ImageTextSample, RandomErasingSpec, StreamPosition, write_shard
from mobileclip.data.augmentation.policy import augmentation_rng, imagenet_augmentation
from mobileclip.datasets import LabelledPipelineSpec, find_class_names
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json, to_json
from tests.data.made_samples import encoded, write_layout, write_raw
from tests.datasets.sources.reading import plant
from tests.errors import fails

NAMES = ("bird", "cat", "dog")
WHOLE = AugmentationSpec(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), num_operations=0)


def members(number: int) -> dict[str, bytes]:
    return {"png": encoded(16, 16, seed=number), "cls": str(number % 3).encode()}


@pytest.fixture
def shards(tmp_path):
    """Two shards of nine images each."""
    for shard in range(2):
        write_raw(tmp_path / f"{shard}.tar", {f"{9 * shard + one:02d}": members(9 * shard + one) for one in range(9)})
    return str(tmp_path / "{0..1}.tar")


@pytest.fixture
def folder(tmp_path):
    """A folder of three classes with six images each."""
    images = {f"{NAMES[number % 3]}/{number:02d}.png": encoded(16, 16, seed=number) for number in range(18)}
    return plant(tmp_path / "data", images)


def spec(shards, **choices):
    fields = {"batch_size": 4, "image": ImageInput(size=16), "num_classes": 3, "augmentation": WHOLE}
    return LabelledPipelineSpec(**{"shards": shards, "flip_probability": 0.0, **fields, **choices})


def read(shards, **choices):
    """Return all images and labels by key, and what is left out."""
    pipeline = spec(shards, drop_last=False, **choices).build()
    found = {
        key.rpartition("/")[2]: (image, int(label))
        for batch in pipeline
        for key, image, label in zip(batch.keys, batch.image, batch.label, strict=True)
    }
    return found, pipeline.report.counts


def test_images_keep_their_labels_and_pixels(shards, folder):
    """From shards and from a folder, every image comes once, with its class and, uncropped, its very pixels."""
    for data in (shards, folder):
        found, _ = read(data)
        assert len(found) == 18
        for number in range(18):
            image, label = found[f"{number:02d}"]
            assert label == number % 3
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_folder_is_numbered_by_its_names_and_called_as_its_table_says(folder):
    (folder / "classes.json").write_text(json.dumps({"bird": "zebra finch"}))
    names = ("zebra finch", "cat", "dog")
    assert find_class_names(folder) == find_class_names(f"class_folder:{folder}") == names
    odd = os.fsencode(folder / "cat") + b"/\xff new\nline.png"
    Path(os.fsdecode(odd)).write_bytes(encoded(16, 16, seed=50))
    found, _ = read(folder, class_names=names)
    assert len(found) == 19
    assert [label for key, (_, label) in found.items() if "new" in key] == [1]


def test_shards_are_called_as_the_file_beside_them_says(shards, tmp_path):
    assert find_class_names(shards) == ()
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    paths = [tmp_path / f"{number}.tar" for number in range(2)]
    assert {find_class_names(data) for data in (shards, tmp_path, f"shards:{shards}", tuple(paths))} == {NAMES}
    assert len(read(tmp_path)[0]) == 18
    root = write_layout(tmp_path / "wds_animals", {}, {}, classnames=NAMES, templates=("a {c}",))
    for path in paths:
        path.rename(root / "test" / path.name)
    assert find_class_names(root) == find_class_names(f"public_layout:{root}") == NAMES
    assert len(read(root)[0]) == 18
    (root / "dataset_type.txt").write_text("retrieval")
    for data in (root, f"jsonl:{tmp_path}/a.jsonl"):
        with fails(ValueError):
            find_class_names(data)


REFUSED = [
    lambda _: spec("a.tar", class_names=("a", "b")),
    lambda _: spec("a.tar", augmentation=imagenet_augmentation(32)),
    lambda folder: spec(folder / "none.tar").build(),
    lambda folder: spec(folder / "cat").build(),
    lambda folder: spec(folder, class_names=("zebra finch", "cat", "dog")).build(),
    lambda folder: spec(folder, num_classes=1000).build(),
    lambda _: RandomErasingSpec(area=(0.5, 1.5)),
    lambda _: RandomErasingSpec(ratio=(2.0, 1.0)),
    lambda _: RandomErasingSpec(probability=1.1),
]


@pytest.mark.parametrize("make", REFUSED)
def test_what_does_not_fit_is_refused(folder, make):
    with fails(ValueError):
        make(folder)


def test_names_in_json_are_labels(tmp_path):
    samples = [
        ImageTextSample(key=f"{number}", captions=("a",), image=encoded(16, 16, seed=number), metadata={"label": label})
        for number, label in enumerate((*NAMES, "cow", 7))
    ]
    write_shard(tmp_path / "a.tar", samples)
    found, left_out = read(tmp_path / "a.tar", class_names=NAMES)
    assert {key: label for key, (_, label) in found.items()} == {"0": 0, "1": 1, "2": 2}
    assert left_out == {"bad_label": 2}
    with fails(ValueError, "5 bad_label"):
        next(iter(spec(tmp_path / "a.tar").build()))


def test_what_cannot_be_used_is_counted(tmp_path, folder):
    rows = [members(0), {"png": encoded(4, 4)}, {"cls": b"0"}]
    rows += [members(0) | changes for changes in ({"cls": b"3"}, {"cls": b"0 1"}, {"png": b"no image"})]
    write_raw(tmp_path / "a.tar", {f"{number}": row for number, row in enumerate(rows)})
    found, left_out = read(tmp_path / "a.tar")
    reasons = "no_label", "no_image", "bad_label", "several_labels", "image_not_an_image"
    assert (list(found), left_out) == (["0"], dict.fromkeys(reasons, 1))
    plant(folder, dict.fromkeys(("cat/01.png", "cat/notes.txt", "stray.png"), b"no image"))
    found, left_out = read(f"class_folder:{folder}")
    assert len(found) == 17
    assert left_out == {"image_not_an_image": 1, "no_class": 1, "other_file": 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_from_any_position(folder, num_workers):
    choices = {"augmentation": imagenet_augmentation(16), "erasing": RandomErasingSpec(probability=0.5)}
    whole = spec(folder, num_workers=num_workers, flip_probability=0.5, **choices)
    (folder / "dog" / "05.png").write_bytes(b"no image")
    pipeline = whole.build()
    batches = pipeline.stream()
    first, *_ = (next(batches) for _ in range(6))
    position = from_json(to_json(pipeline.position(6)), StreamPosition)
    expected = [next(batches) for _ in range(4)]
    for batch, other in zip(expected, whole.build().stream(position), strict=False):
        assert batch.keys == other.keys
        assert torch.equal(batch.image, other.image)
        assert torch.equal(batch.label, other.label)
    assert not torch.equal(first.image, expected[0].image)


def test_an_epoch_is_dealt_out_and_mixes_the_classes(folder, monkeypatch):
    labels = [label for _, label in read(folder, shuffle=False)[0].values()]
    assert labels != sorted(labels)
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        keys += [key for batch in spec(folder, drop_last=False).build() for key in batch.keys]
    assert len(keys) == len(set(keys)) == 18


def test_flips(folder):
    never, always, some = (read(folder, flip_probability=probability)[0] for probability in (0.0, 1.0, 0.5))
    assert all(torch.equal(never[key][0].flip(-1), always[key][0]) for key in never)
    assert 0 < sum(torch.equal(some[key][0], never[key][0]) for key in never) < 18


def test_operations_come_with_their_probability_at_nine_tenths_of_their_strength():
    sampled = [imagenet_augmentation(32).sample(augmentation_rng(0, f"{one}", 0), (64, 64)) for one in range(400)]
    counts = Counter(len(params.operations) for params in sampled)
    assert counts.keys() == {0, 1, 2}
    assert 160 < counts[1] < 240
    assert 60 < counts[0] < 140
    largest = {1: 0.27, 5: 27.0, 6: 0.81}
    for index, magnitude in (operation for params in sampled for operation in params.operations):
        assert abs(magnitude) == pytest.approx(largest.get(index, abs(magnitude)), rel=1e-5)


def test_a_rectangle_becomes_noise_with_a_probability():
    pixels = np.full((40, 60, 3), 7, np.uint8)
    areas, num_changed = [], 0
    for number in range(300):
        some, erased = (
            RandomErasingSpec(**choices).apply(pixels, augmentation_rng(0, f"{number}", 0))
            for choices in ({}, {"probability": 1.0})
        )
        num_changed += (some != 7).any()
        rows, columns = (slice(places.min(), places.max() + 1) for places in np.nonzero((erased != 7).any(axis=2)))
        inside = erased[rows, columns]
        assert inside.shape[0] < 40
        assert inside.shape[1] < 60
        areas.append(inside[..., 0].size / 2400)
    assert 50 < num_changed < 100
    assert 0.01 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.36
    assert (pixels == 7).all()
