"""Speed of the augmentation replay: decoded image in, augmented image out; and of a whole sample from its bytes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mobileclip.data import datacompdr_augmentation, decode_image
from mobileclip.data.augmentation.operations import OPERATIONS, magnitudes
from mobileclip.data.augmentation.policy import decompress

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
RECORDS = json.loads((GOLDEN / "replay.json").read_text())["records"]


def pictures() -> dict[str, Image.Image]:
    images = {}
    for path in (GOLDEN / "images").glob("*.png"):
        with Image.open(path) as image:
            images[path.name] = image.convert("RGB")
    return images


@pytest.mark.parametrize("size", [224, 256])
def test_replay(benchmark, size):
    """The 60 golden records, once a round."""
    augmentation = datacompdr_augmentation(size)
    images = pictures()
    work = [(images[record["image"]], decompress(record["param_aug"])) for record in RECORDS]
    benchmark.extra_info["images_per_round"] = len(work)
    benchmark(lambda: [augmentation.apply(image, params) for image, params in work])


@pytest.mark.parametrize("size", [224, 256])
def test_decode_and_replay(benchmark, size):
    """The same from JPEG bytes, which is what a worker does."""
    augmentation = datacompdr_augmentation(size)
    encoded = {}
    for name, image in pictures().items():
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=95)
        encoded[name] = stream.getvalue()
    work = [(encoded[record["image"]], decompress(record["param_aug"])) for record in RECORDS]
    benchmark.extra_info["images_per_round"] = len(work)
    benchmark(lambda: [augmentation.apply(decode_image(data), params) for data, params in work])


@pytest.mark.parametrize("index", range(len(OPERATIONS)), ids=[operation.name for operation in OPERATIONS])
def test_operation(benchmark, index):
    """One operation at 224 pixels."""
    image = pictures()["astronaut.png"].resize((224, 224))
    benchmark(OPERATIONS[index].apply, image, magnitudes(31, 224)[index][9])
