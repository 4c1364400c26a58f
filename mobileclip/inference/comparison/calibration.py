"""Several crops of each of a few pictures: what ranges of values are found with."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mobileclip.data.images.transform import ImageError, ImageTransform, load_image
from mobileclip.inputs import ImageInput

# Static ranges of convolutional networks settle within about a hundred images.
NUM_CROPS = 96
"""Crops that ranges are found with."""

_LEAST_AREA, _WIDEST = 0.4, 4 / 3


def calibration_crops(images: Sequence[bytes], contract: ImageInput) -> Tensor:
    """Return about a hundred crops of images, resized as a model takes them, and not normalised yet.

    Where there are fewer images, several crops are taken of each, always the same ones: at least 0.4 of its area,
    between 3:4 and 4:3, half of them mirrored.

    Shape:
        `(crops, 3, size, size)`, uint8; no crops where no image can be read.

    Args:
        images: encoded; those that cannot be read are left out, and so are those behind the first `NUM_CROPS`.
        contract: of the model.
    """
    transform, generator = ImageTransform(contract), random.Random(0)  # noqa: S311  not for secrets
    each = math.ceil(NUM_CROPS / len(images))
    readable = (found for data in images[:NUM_CROPS] if (found := _readable(data, contract)) is not None)
    crops = [transform.pixels(_cropped(image, generator)) for image in readable for _ in range(each)]
    if not crops:
        return torch.empty(0, 3, contract.size, contract.size, dtype=torch.uint8)
    return torch.stack([torch.from_numpy(crop).movedim(-1, 0) for crop in crops])


def _readable(data: bytes, contract: ImageInput) -> Image.Image | None:
    try:
        return load_image(data, background=contract.background_color)
    except ImageError:
        return None


def _cropped(image: Image.Image, generator: random.Random) -> Image.Image:
    """Return a random part of an image, mirrored every other time."""
    area = generator.uniform(_LEAST_AREA, 1) * image.width * image.height
    aspect = math.exp(generator.uniform(-math.log(_WIDEST), math.log(_WIDEST)))
    width = max(1, min(image.width, round(math.sqrt(area * aspect))))
    height = max(1, min(image.height, round(math.sqrt(area / aspect))))
    left, top = generator.randint(0, image.width - width), generator.randint(0, image.height - height)
    crop = image.crop((left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else crop
