"""Replay against the golden records and torchvision; sampling against torchvision's distribution."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import attrs
import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from mobileclip.data import (
    AugmentationParams,
    AugmentationSpec,
    ReinforcementCard,
    augmentation_rng,
    augmentations,
    crop_augmentation,
    datacompdr_augmentation,
    imagenet_augmentation,
    read_card,
    write_card,
)
from mobileclip.data.augmentation.operations import OPERATIONS, Operation, augmentation_operations, magnitudes
from mobileclip.data.augmentation.policy import compress, decompress
from mobileclip.data.samples.members import parse_stored_sample, sample_members
from tests.build.image_files import noise
from tests.data.made_samples import make_sample
from tests.errors import fails
from tests.lazily import lazily
from tests.preloaded import preloaded

transforms = lazily("torchvision.transforms")

GOLDEN = Path(__file__).parents[2] / "golden" / "augment"
RECORDS = json.loads((GOLDEN / "replay.json").read_text())["records"]
CONSTANT = "[[48, 154, 156, 180], [[3, 30.45317268371582], [12, 0.0]]]"
NAMES = [operation.name for operation in OPERATIONS]
POLICY = datacompdr_augmentation(224)


def picture(name: str) -> Image.Image:
    with Image.open(GOLDEN / "images" / name) as image:
        return image.convert("RGB")


def sampled(seed: int, key: str, index: int, size: tuple[int, int], policy=POLICY) -> AugmentationParams:
    return policy.sample(augmentation_rng(seed, key, index), size)


def same(found: Image.Image, expected: Image.Image, message: str = "") -> None:
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), message)


# Replay.


@pytest.mark.parametrize("size", [224, 256])
def test_every_golden_record_is_replayed_identically_and_stored_as_it_was(size):
    augmentation = datacompdr_augmentation(size)
    images = {name: picture(name) for name in {record["image"] for record in RECORDS}}
    for record in RECORDS:
        stored, expected = record["param_aug"], record["outputs"][str(size)]
        params = decompress(stored)
        assert json.loads(json.dumps(compress(params))) == stored
        replayed = augmentation.apply(images[record["image"]], params)
        assert replayed.size == (size, size)
        if int(PIL.__version__.partition(".")[0]) >= 13:
            assert hashlib.sha256(replayed.tobytes()).hexdigest() == expected["sha256"], stored
        else:  # Pillow rounded some pixels the other way, and moved by parts of a pixel
            means = np.asarray(replayed.resize((8, 8), Image.Resampling.BOX), np.float64)
            assert np.abs(means - np.reshape(expected["box8"], (8, 8, 3))).mean() < 0.2, stored
    same(augmentation.apply(images[record["image"]].convert("RGBA"), params), replayed, "any mode is replayed as RGB")


def test_sampled_magnitudes_are_the_stored_ones():
    found = {operation for key in range(400) for operation in sampled(0, str(key), 0, (360, 240)).operations}
    assert {tuple(operation) for record in RECORDS for operation in record["param_aug"][1]} <= found
    assert len(found) == 14 + 9


def torchvisions(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """Return the image after an operation of torchvision."""
    from torchvision.transforms.autoaugment import _apply_op

    return _apply_op(image, name, magnitude, transforms.InterpolationMode.NEAREST, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [224, 65])
def test_an_operation_is_torchvisions(name, size):
    operation, table = OPERATIONS[NAMES.index(name)], magnitudes(31, size)[NAMES.index(name)]
    for image in (noise(size, size), picture("chelsea.png").resize((size, size))):
        for magnitude in {sign * value for value in table[::3] for sign in ((1, -1) if operation.signed else (1,))}:
            same(operation.apply(image, magnitude), torchvisions(image, name, magnitude), f"{magnitude}")


@given(
    st.sampled_from([1, 2, 3, 4, 5, NAMES.index("Sharpness")]),
    st.floats(-0.9, 0.9),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_geometry_and_sharpness_at_any_size_are_torchvisions(index, strength, size):
    magnitude = strength * {1: 0.5, 2: 0.5, 3: size[0] / 2, 4: size[1] / 2, 5: 45}.get(index, 1)
    image = noise(*size)
    same(OPERATIONS[index].apply(image, magnitude), torchvisions(image, NAMES[index], magnitude))


@pytest.mark.parametrize("num_bins", [2, 10, 31])
@pytest.mark.parametrize("side", [64, 224, 256])
def test_magnitudes_are_torchvisions(num_bins, side):
    space = transforms.RandAugment()._augmentation_space(num_bins, (side, side))
    assert list(space) == NAMES
    for operation, table, (expected, signed) in zip(
        OPERATIONS, magnitudes(num_bins, side), space.values(), strict=True
    ):
        assert list(table) == (expected.tolist() if expected.ndim else [0.0] * num_bins), operation.name
        assert operation.signed == signed


@given(st.data())
def test_a_crop_is_torchvisions(data):
    width, height = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    top, left = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    crop = (top, left, *data.draw(st.tuples(st.integers(1, height - top), st.integers(1, width - left))))
    kind, size = data.draw(st.sampled_from(["bilinear", "bicubic"])), data.draw(st.integers(1, 64))
    mode = transforms.InterpolationMode(kind)
    expected = transforms.functional.resized_crop(noise(width, height), *crop, [size, size], mode)
    augmentation = AugmentationSpec(size=size, interpolation=kind)
    same(augmentation.apply(noise(width, height), AugmentationParams(crop=crop)), expected)


def test_translations_can_follow_the_size():
    """Half the size, half the translation: the student sees the part that the teachers saw."""
    params = AugmentationParams(crop=(0, 0, 224, 224), operations=((3, 60.0), (4, -40.0)))
    image = Image.fromarray(np.kron(np.asarray(noise(112, 112)), np.ones((2, 2, 1), np.uint8)))
    large = AugmentationSpec(size=224)
    fixed = AugmentationSpec(size=112, interpolation="bilinear")
    small = attrs.evolve(fixed, scale_translations=True)
    pixels = [np.asarray(one.apply(image, params)) for one in (large, small, fixed)]
    assert [(one.sum(axis=2) == 0).all(axis=0).sum() for one in pixels] == [60, 30, 60]


# Sampling.


def crops_of_both(size: tuple[int, int], count: int = 4000, **choices: tuple[float, float]) -> tuple[np.ndarray, ...]:
    augmentation = AugmentationSpec(size=224, num_operations=0, **choices)
    ours = np.array([sampled(1, "crop", index, size, augmentation).crop for index in range(count)])
    torch.manual_seed(0)
    image = torch.zeros(1, size[1], size[0])
    bounds = list(augmentation.scale), list(augmentation.ratio)
    return ours, np.array([transforms.RandomResizedCrop.get_params(image, *bounds) for _ in range(count)])


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of two empirical distributions."""
    points = np.concatenate([first, second])
    both = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (first, second))
    return float(np.abs(np.subtract(*both)).max())


@pytest.mark.parametrize("size", [(239, 360), (600, 100), (7, 5)])
def test_crops_are_distributed_as_torchvisions(size):
    # The two samples of 4000 from one distribution differ by more than 0.0436 once in 1000 times.
    both = [(*crops.T, crops[:, 2] * crops[:, 3], crops[:, 3] / crops[:, 2]) for crops in crops_of_both(size)]
    for name, one, other in zip(("top", "left", "height", "width", "area", "aspect"), *both, strict=True):
        assert distance(one, other) < 0.0436, name


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 300), (300, 1), (1, 1)])
def test_an_image_too_narrow_for_any_crop_gets_the_central_one(size):
    ours, theirs = crops_of_both(size, count=20, scale=(1.0, 1.0))
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours, axis=0)) == 1


@given(st.integers(0, 2**64), st.text(), st.integers(0, 40), st.integers(1, 4000), st.integers(1, 4000))
def test_crops_stay_inside_and_compression_is_exact(seed, key, index, width, height):
    params = sampled(seed, key, index, (width, height))
    top, left, crop_height, crop_width = params.crop
    assert 0 <= top < top + crop_height <= height
    assert 0 <= left < left + crop_width <= width
    assert decompress(json.loads(json.dumps(compress(params))), (width, height)) == params


def test_operations_and_signs_are_drawn_evenly():
    drawn = [operation for index in range(7000) for operation in sampled(2, "op", index, (100, 100)).operations]
    counts = np.bincount([index for index, _ in drawn], minlength=14)
    assert ((counts - 1000) ** 2 / 1000).sum() < 34.5  # chi-squared with 13 degrees of freedom, one in 1000
    signs = [magnitude > 0 for index, magnitude in drawn if OPERATIONS[index].signed]
    assert abs(np.mean(signs) - 0.5) < 4 * 0.5 / np.sqrt(len(signs))
    assert len({(first, second) for (first, _), (second, _) in zip(drawn[::2], drawn[1::2], strict=True)}) == 14 * 14


def test_a_sample_is_the_same_in_any_version_and_any_process(tmp_path):
    """In one that gives texts other hashes, too; so that no version of numpy or of this library changes a seed."""
    assert json.dumps(compress(sampled(0, "000100000000", 3, (360, 240)))) == CONSTANT
    arguments = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a0", 0), (0, "a\x1fint", 0), (-1, "ä", 0)]
    ours = [sampled(*one, (1000, 900)).crop for one in arguments]
    assert len(set(ours)) == len(arguments), "seed, key and index all count"
    script = (
        "from mobileclip.data import augmentation_rng, datacompdr_augmentation as policy\n"
        f"print([policy(224).sample(augmentation_rng(*one), (1000, 900)).crop for one in {arguments}])\n"
        "import sys, mobileclip.losses\n"
        "print(sorted(sys.modules.keys() & {'torchvision', 'webdataset', 'tokenizers', 'ftfy', 'cattrs', 'tyro'}))"
    )
    printed = preloaded("torch").call("tests.preloaded:python", "-c", script, folder=tmp_path)
    assert (printed.status, printed.output) == (0, f"{ours}\n[]\n")


# What is refused, and what is chosen.


def test_an_image_that_a_crop_does_not_fit_is_refused():
    image = picture("coffee.png")
    with fails(ValueError, "360", "240", "180", "120"):
        POLICY.apply(image.resize((180, 120)), sampled(0, "coffee", 0, image.size))
    with fails(ValueError, "(0, 100, 240, 261)", "360", "240"):
        POLICY.apply(image, decompress([[0, 100, 240, 261], []]))
    with fails(ValueError):
        AugmentationParams(crop=(0, 0, 10, 10), image_size=(9, 10))
    with fails(ValueError, "0", "5"):
        sampled(0, "a", 0, (0, 5))


CROP = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("compressed", "words"),
    [
        *((other, ()) for other in (None, 7, [], [CROP, [], []])),
        *(([crop, []], ()) for crop in ([1, 2, 3], [1, 2, 3, 4.5], [-1, 2, 3, 4], [1, 2, 0, 4])),
        *(([CROP, operations], ()) for operations in (5, [[1]], [[1, "strong"]])),
        ([CROP, [[14, 0.0]]], ("14", "13")),
        ([CROP, [[None, 0.0]]], ("None",)),
        ([CROP, [[1, float("nan")]]], ("ShearX", "nan")),
    ],
)
def test_malformed_parameters_are_refused(compressed, words):
    with fails(ValueError, *words):
        decompress(compressed)
    for none in ([CROP], [CROP, None], [CROP, []]):
        assert decompress(none) == AugmentationParams(crop=(1, 2, 3, 4)), "no operations are well-formed"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("size", [0]), ("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)]), ("ratio", [(0.0, 1.0)])),
        *(("magnitude", [31, -1]), ("num_operations", [-1]), ("num_bins", [1]), ("interpolation", ["nearest"])),
    ],
)
def test_bad_choices_are_refused(name, values):
    for value in values:
        with fails(ValueError, name):
            AugmentationSpec(**({"size": 224} | {name: value}))


def test_policies_have_names():
    assert AugmentationSpec(size=192, scale=[0.5, 1]).scale == (0.5, 1.0)
    assert augmentations.resolve("datacompdr")(256) == datacompdr_augmentation(256) == AugmentationSpec(size=256)
    assert augmentations.resolve("crop")(64) == crop_augmentation(64)
    assert sampled(0, "a", 0, (50, 50), crop_augmentation(64)).operations == ()


@pytest.mark.parametrize("magnitude", range(10))
def test_imagenet_posterizes_to_the_bits_of_timm(magnitude):
    from timm.data.auto_augment import AugmentOp

    posterize, image = NAMES.index("Posterize"), noise(32, 32)
    spec = attrs.evolve(imagenet_augmentation(32), magnitude=magnitude, num_operations=60)
    (bits,) = {strength for index, strength in sampled(0, "a", 0, (50, 50), spec).operations if index == posterize}
    timm = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=magnitude)
    same(OPERATIONS[posterize].apply(image, bits), timm(image))


def test_operations_of_other_packages_are_drawn_stored_and_replayed_by_their_names(tmp_path, monkeypatch):
    def swap(image, magnitude):
        return Image.merge("RGB", image.split()[:: int(magnitude)])

    monkeypatch.setattr(augmentation_operations, "_values", dict(augmentation_operations._values))
    augmentation_operations.add("Swap", Operation("Swap", swap, lambda num_bins, _: (-1.0,) * num_bins))
    spec = AugmentationSpec(size=24, operations=("Swap",), num_operations=1, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    image = noise(24, 24)
    params = sampled(0, "a", 0, image.size, spec)
    stored = json.loads('[[0, 0, 24, 24], [["Swap", -1.0]]]')
    assert json.loads(json.dumps(compress(params))) == stored
    for layout in ("npz", "compact"):
        sample = make_sample(0, augmentations=[params] * 3)
        again = parse_stored_sample(sample.key, sample_members(sample, layout))
        same(spec.apply(image, again.augmentations[0]), swap(image, -1))
    write_card(tmp_path, ReinforcementCard(layout="npz", augmentation=spec))
    assert read_card(tmp_path).augmentation == spec
    # One that nobody has registered is named.
    del augmentation_operations._values["Swap"]
    for read in (lambda: decompress(stored), lambda: read_card(tmp_path)):
        with fails(ValueError, "augmentation operation", "Swap"):
            read()
