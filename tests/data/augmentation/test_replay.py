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
from mobileclip.data.samples.members import parse_stored_sample, sample_members
from tests.data.made_samples import make_sample
from tests.errors import fails
from tests.lazily import lazily
from tests.preloaded import preloaded

transforms = lazily("torchvision.transforms")

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "augment"
RECORDS = json.loads((GOLDEN / "replay.json").read_text())["records"]
CONSTANT = "[[48, 154, 156, 180], [[3, 30.45317268371582], [12, 0.0]]]"
NAMES = [operation.name for operation in OPERATIONS]
# Before 13, which made the golden values, Pillow rounded some pixels the other way, and moved by parts of a pixel.
PILLOW = tuple(map(int, PIL.__version__.split(".")[:1]))


def picture(name: str) -> Image.Image:
    with Image.open(GOLDEN / "images" / name) as image:
        return image.convert("RGB")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise shows every pixel that is off by one, which smooth photographs may hide."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def off_by(image, boxes):
    """Return how far means over 8 x 8 boxes are from the expected ones, on average, in levels of 0 to 255."""
    means = np.asarray(image.resize((8, 8), Image.Resampling.BOX), np.float64)
    return np.abs(means - np.reshape(boxes, (8, 8, 3))).mean()


class TestGolden:
    @pytest.mark.parametrize("size", [224, 256])
    def test_every_record_is_identical(self, size):
        augmentation = datacompdr_augmentation(size)
        images = {record["image"]: picture(record["image"]) for record in RECORDS}
        for record in RECORDS:
            replayed = augmentation.apply(images[record["image"]], augmentation.decompress(record["param_aug"]))
            digest = hashlib.sha256(np.asarray(replayed).tobytes()).hexdigest()
            assert replayed.size == (size, size)
            if PILLOW < (13,):
                assert off_by(replayed, record["outputs"][str(size)]["box8"]) < 0.2, record["param_aug"]
            else:
                assert digest == record["outputs"][str(size)]["sha256"], record["param_aug"]

    def test_compression_gives_the_stored_form_back(self):
        augmentation = datacompdr_augmentation(224)
        for record in RECORDS:
            compressed = augmentation.compress(augmentation.decompress(record["param_aug"]))
            assert json.loads(json.dumps(compressed)) == record["param_aug"]

    def test_sampled_magnitudes_are_the_stored_ones(self):
        sampled = {
            (index, magnitude)
            for key in range(400)
            for index, magnitude in datacompdr_augmentation(224)
            .sample(augmentation_rng(0, str(key), 0), (360, 240))
            .operations
        }
        assert {tuple(operation) for record in RECORDS for operation in record["param_aug"][1]} <= sampled
        assert len(sampled) == 14 + 9

    def test_any_mode_is_replayed_as_rgb(self):
        record = RECORDS[0]
        augmentation = datacompdr_augmentation(64)
        params = augmentation.decompress(record["param_aug"])
        image = picture(record["image"])
        expected = np.asarray(augmentation.apply(image, params))
        np.testing.assert_array_equal(np.asarray(augmentation.apply(image.convert("RGBA"), params)), expected)


def torchvisions(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """Return the image after an operation of torchvision."""
    from torchvision.transforms.autoaugment import _apply_op

    return _apply_op(image, name, magnitude, transforms.InterpolationMode.NEAREST, None)


class TestTorchvision:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("size", [224, 65])
    def test_operation(self, name, size):
        index = NAMES.index(name)
        operation = OPERATIONS[index]
        table = magnitudes(31, size)[index]
        for image in (noise(size, size), picture("chelsea.png").resize((size, size))):
            for magnitude in sorted(
                {sign * value for value in table[::3] for sign in ((1, -1) if operation.signed else (1,))}
            ):
                expected = torchvisions(image, name, magnitude)
                np.testing.assert_array_equal(
                    np.asarray(operation.apply(image, magnitude)), np.asarray(expected), err_msg=f"{name} {magnitude}"
                )

    @given(
        st.sampled_from([1, 2, 3, 4, 5, NAMES.index("Sharpness")]),
        st.floats(-0.9, 0.9),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.integers(0, 9),
    )
    def test_geometry_and_sharpness_at_any_size(self, index, strength, size, seed):
        magnitude = strength * {1: 0.5, 2: 0.5, 3: size[0] / 2, 4: size[1] / 2, 5: 45}.get(index, 1)
        image = noise(*size, seed)
        expected = torchvisions(image, NAMES[index], magnitude)
        np.testing.assert_array_equal(np.asarray(OPERATIONS[index].apply(image, magnitude)), np.asarray(expected))

    @pytest.mark.parametrize("num_bins", [2, 10, 31])
    @pytest.mark.parametrize("side", [64, 224, 256])
    def test_magnitudes(self, num_bins, side):
        space = transforms.RandAugment()._augmentation_space(num_bins, (side, side))
        assert list(space) == NAMES
        for operation, table, (expected, signed) in zip(
            OPERATIONS, magnitudes(num_bins, side), space.values(), strict=True
        ):
            values = expected.tolist() if expected.ndim else [0.0] * num_bins
            assert list(table) == values, operation.name
            assert operation.signed == signed

    @given(st.data())
    def test_crop(self, data):
        width, height = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
        top, left = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
        crop = (top, left, *data.draw(st.tuples(st.integers(1, height - top), st.integers(1, width - left))))
        interpolation = data.draw(st.sampled_from(["bilinear", "bicubic"]))
        size = data.draw(st.integers(1, 64))
        augmentation = AugmentationSpec(size=size, interpolation=interpolation)
        image = noise(width, height)
        expected = transforms.functional.resized_crop(
            image, *crop, [size, size], transforms.InterpolationMode(interpolation)
        )
        replayed = augmentation.apply(image, AugmentationParams(crop=crop))
        np.testing.assert_array_equal(np.asarray(replayed), np.asarray(expected))


def crops_of_both(size: tuple[int, int], count: int = 4000, **choices: tuple[float, float]) -> tuple[np.ndarray, ...]:
    augmentation = AugmentationSpec(size=224, num_operations=0, **choices)
    ours = np.array([augmentation.sample(augmentation_rng(1, "crop", index), size).crop for index in range(count)])
    torch.manual_seed(0)
    image = torch.zeros(1, size[1], size[0])
    scale, ratio = list(augmentation.scale), list(augmentation.ratio)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)])
    return ours, theirs


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of two empirical distributions."""
    points = np.concatenate([first, second])
    both = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (first, second))
    return float(np.abs(np.subtract(*both)).max())


class TestSampling:
    @pytest.mark.parametrize("size", [(239, 360), (600, 100), (7, 5)])
    def test_crops_are_distributed_as_torchvisions(self, size):
        ours, theirs = crops_of_both(size)
        # The two samples of 4000 from one distribution differ by more than 0.0436 once in 1000 times.
        names = ("top", "left", "height", "width", "area", "aspect")
        both = [(*crops.T, crops[:, 2] * crops[:, 3], crops[:, 3] / crops[:, 2]) for crops in (ours, theirs)]
        for name, one, other in zip(names, *both, strict=True):
            assert distance(one, other) < 0.0436, name

    @pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 300), (300, 1), (1, 1)])
    def test_an_image_too_narrow_for_any_crop_gets_the_central_one(self, size):
        ours, theirs = crops_of_both(size, count=20, scale=(1.0, 1.0))
        np.testing.assert_array_equal(ours, theirs)
        assert len(np.unique(ours, axis=0)) == 1

    @given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2**32))
    def test_crops_stay_inside(self, width, height, seed):
        top, left, crop_height, crop_width = (
            datacompdr_augmentation(224).sample(augmentation_rng(seed, "k", 0), (width, height)).crop
        )
        assert 0 <= top <= height - crop_height
        assert 0 <= left <= width - crop_width
        assert min(crop_height, crop_width) >= 1

    def test_operations_and_signs_are_drawn_evenly(self):
        augmentation = datacompdr_augmentation(224)
        drawn = [
            operation
            for index in range(7000)
            for operation in augmentation.sample(augmentation_rng(2, "op", index), (100, 100)).operations
        ]
        counts = np.bincount([index for index, _ in drawn], minlength=14)
        assert ((counts - 1000) ** 2 / 1000).sum() < 34.5  # chi-squared with 13 degrees of freedom, one in 1000
        signs = [magnitude > 0 for index, magnitude in drawn if OPERATIONS[index].signed]
        assert abs(np.mean(signs) - 0.5) < 4 * 0.5 / np.sqrt(len(signs))
        pairs = {(first, second) for (first, _), (second, _) in zip(drawn[::2], drawn[1::2], strict=True)}
        assert len(pairs) == 14 * 14

    def test_a_sample_is_a_constant(self):
        """Stored here, so that no version of numpy or of this library changes what a seed means."""
        params = datacompdr_augmentation(224).sample(augmentation_rng(0, "000100000000", 3), (360, 240))
        assert json.dumps(datacompdr_augmentation(224).compress(params)) == CONSTANT

    def test_the_same_in_any_process(self, tmp_path):
        """In one that gives texts other hashes, too."""
        augmentation = datacompdr_augmentation(224)
        ours = [
            augmentation.compress(augmentation.sample(augmentation_rng(0, f"key{number}", index), (640, 480)))
            for number in range(5)
            for index in range(3)
        ]
        script = (
            "from mobileclip.data import augmentation_rng, datacompdr_augmentation as policy\n"
            "print([policy(224).compress(policy(224).sample(augmentation_rng(0, f'key{n}', i), (640, 480)))"
            " for n in range(5) for i in range(3)])\n"
            "import sys, mobileclip.losses\n"
            "print(sorted(sys.modules.keys() & {'torchvision', 'webdataset', 'tokenizers', 'ftfy', 'cattrs', 'tyro'}))"
        )
        printed = preloaded("torch").call("tests.preloaded:python", "-c", script, folder=tmp_path)
        assert printed.status == 0, printed.output
        numbers, slow_imports = printed.output.splitlines()
        assert numbers == str(ours)
        assert slow_imports == "[]"

    def test_seed_key_and_index_all_count(self):
        arguments = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a0", 0), (0, "a\x1fint", 0), (-1, "ä", 0)]
        crops = {datacompdr_augmentation(224).sample(augmentation_rng(*one), (1000, 900)).crop for one in arguments}
        assert len(crops) == len(arguments)


class TestParams:
    @given(st.integers(0, 2**64), st.text(), st.integers(0, 40), st.integers(1, 4000), st.integers(1, 4000))
    def test_compression_is_exact(self, seed, key, index, width, height):
        augmentation = datacompdr_augmentation(224)
        params = augmentation.sample(augmentation_rng(seed, key, index), (width, height))
        stored = json.loads(json.dumps(augmentation.compress(params)))
        assert augmentation.decompress(stored, (width, height)) == params

    def test_an_image_that_a_crop_does_not_fit_is_refused(self):
        augmentation = datacompdr_augmentation(224)
        image = picture("coffee.png")
        params = augmentation.sample(augmentation_rng(0, "coffee", 0), image.size)
        with fails(ValueError, "360", "240", "180", "120"):
            augmentation.apply(image.resize((180, 120)), params)
        with fails(ValueError, "(0, 100, 240, 261)", "360", "240"):
            augmentation.apply(image, augmentation.decompress([[0, 100, 240, 261], []]))
        with fails(ValueError):
            AugmentationParams(crop=(0, 0, 10, 10), image_size=(9, 10))
        with fails(ValueError, "0", "5"):
            augmentation.sample(augmentation_rng(0, "a", 0), (0, 5))

    @pytest.mark.parametrize(
        ("compressed", "words"),
        [
            *((crop, ()) for crop in (None, 7, [], [[1, 2, 3], []], [[1, 2, 3, 4.5], []], [[-1, 2, 3, 4], []])),
            *(([[1, 2, 3, 4], operations], ()) for operations in (5, [[1]], [[1, "strong"]])),
            *((crop, ()) for crop in ([[1, 2, 0, 4], []], [[1, 2, 3, 4], [], []])),
            ([[1, 2, 3, 4], [[14, 0.0]]], ("14", "13")),
            ([[1, 2, 3, 4], [[None, 0.0]]], ("None",)),
            ([[1, 2, 3, 4], [[1, float("nan")]]], ("ShearX", "nan")),
        ],
    )
    def test_malformed_parameters_are_refused(self, compressed, words):
        with fails(ValueError, *words):
            datacompdr_augmentation(224).decompress(compressed)

    @pytest.mark.parametrize("compressed", [[[1, 2, 3, 4]], [[1, 2, 3, 4], None], [[1, 2, 3, 4], []]])
    def test_no_operations(self, compressed):
        assert datacompdr_augmentation(224).decompress(compressed) == AugmentationParams(crop=(1, 2, 3, 4))


class TestSpec:
    def test_translations_can_follow_the_size(self):
        """Half the size, half the translation: the student sees the part that the teachers saw."""
        params = AugmentationParams(crop=(0, 0, 224, 224), operations=((3, 60.0), (4, -40.0)))
        image = Image.fromarray(np.kron(np.asarray(noise(112, 112)), np.ones((2, 2, 1), np.uint8)))
        large = np.asarray(AugmentationSpec(size=224).apply(image, params))
        small = AugmentationSpec(size=112, scale_translations=True, interpolation="bilinear").apply(image, params)
        fixed = AugmentationSpec(size=112, interpolation="bilinear").apply(image, params)
        black = [(np.asarray(pixels).sum(axis=2) == 0).all(axis=0).sum() for pixels in (large, small, fixed)]
        assert black == [60, 30, 60]

    def test_registry(self):
        assert AugmentationSpec(size=192, scale=[0.5, 1]).scale == (0.5, 1.0)
        assert augmentations.resolve("datacompdr")(256) == datacompdr_augmentation(256) == AugmentationSpec(size=256)
        assert augmentations.resolve("crop")(64) == crop_augmentation(64)
        assert crop_augmentation(64).sample(augmentation_rng(0, "a", 0), (50, 50)).operations == ()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("size", 0), ("scale", (0.0, 1.0)), ("scale", (0.5, 0.4)), ("scale", (0.5, 1.1)), ("ratio", (0.0, 1.0))),
            *(("magnitude", 31), ("magnitude", -1), ("num_operations", -1), ("num_bins", 1)),
            ("interpolation", "nearest"),
        ],
    )
    def test_bad_choices_are_refused(self, name, value):
        with fails(ValueError, name):
            AugmentationSpec(**({"size": 224} | {name: value}))

    @pytest.mark.parametrize("magnitude", range(10))
    def test_imagenet_posterizes_to_the_bits_of_timm(self, magnitude):
        from timm.data.auto_augment import AugmentOp

        spec = attrs.evolve(imagenet_augmentation(32), magnitude=magnitude, num_operations=60)
        (bits,) = {
            strength
            for index, strength in spec.sample(augmentation_rng(0, "a", 0), (50, 50)).operations
            if index == NAMES.index("Posterize")
        }
        timm = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=magnitude)
        image = noise(32, 32)
        np.testing.assert_array_equal(
            np.asarray(OPERATIONS[NAMES.index("Posterize")].apply(image, bits)), np.asarray(timm(image))
        )


class TestOwnOperations:
    """Operations of other packages: drawn, stored and replayed by their names."""

    @pytest.fixture
    def spec(self, monkeypatch):
        monkeypatch.setattr(augmentation_operations, "_values", dict(augmentation_operations._values))
        swap = Operation(
            "Swap", lambda image, magnitude: Image.merge("RGB", image.split()[:: int(magnitude)]), _minus_one
        )
        augmentation_operations.add("Swap", swap)
        return AugmentationSpec(size=24, operations=("Swap",), num_operations=1, scale=(1.0, 1.0), ratio=(1.0, 1.0))

    def test_they_are_stored_and_replayed_by_name(self, spec):
        image = noise(24, 24)
        params = spec.sample(augmentation_rng(0, "a", 0), image.size)
        assert json.dumps(spec.compress(params)) == '[[0, 0, 24, 24], [["Swap", -1.0]]]'
        for layout in ("npz", "compact"):
            sample = make_sample(0, augmentations=[params] * 3)
            stored = parse_stored_sample(sample.key, sample_members(sample, layout))
            replayed = spec.apply(image, stored.augmentations[0])
            np.testing.assert_array_equal(np.asarray(replayed), np.asarray(image)[..., ::-1])

    def test_a_card_has_their_names_of_which_one_that_nobody_registered_is_named(self, spec, tmp_path):
        write_card(tmp_path, ReinforcementCard(layout="npz", augmentation=spec))
        assert read_card(tmp_path).augmentation == spec
        del augmentation_operations._values["Swap"]
        with fails(ValueError, "augmentation operation", "Swap"):
            spec.decompress([[0, 0, 24, 24], [["Swap", -1.0]]])
        with fails(ValueError, "augmentation operation", "Swap"):
            read_card(tmp_path)


def _minus_one(num_bins: int, _side: int) -> tuple[float, ...]:
    return (-1.0,) * num_bins
