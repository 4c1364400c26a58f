"""What ranges of values are found with: real images in several crops, and real captions."""

from __future__ import annotations

import math
import random

import torch
from PIL import Image
from torch import Tensor, nn

from mobileclip.data.images.transform import ImageError, ImageTransform, load_image
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.export.graph import input_of
from mobileclip.export.measured import as_taken
from mobileclip.export.samples import Samples
from mobileclip.export.spec import Preprocess
from mobileclip.inputs import ImageInput

# Static ranges of convolutional networks settle within about a hundred images.
_NUM_IMAGES = 96
_LEAST_AREA, _WIDEST = 0.4, 4 / 3


def calibration_inputs(encoder: nn.Module, samples: Samples, preprocess: Preprocess) -> Tensor:
    """Return inputs as an exported tower takes them: about a hundred crops of images, or all captions.

    Where there are fewer images, several crops are taken of each, always the same ones: at least 0.4 of its area,
    between 3:4 and 4:3, half of them mirrored.

    Shape:
        `(crops, 3, size, size)`, or `(captions, context_length)`, int64.

    Args:
        encoder: a tower, or a classifier.
        samples: images that cannot be read are left out, as they are where an export is measured.
        preprocess: of the export.

    Raises:
        ValueError: if no image can be read.
    """
    contract = input_of(encoder)
    if not isinstance(contract, ImageInput):
        return Tokenizer(contract)(samples.captions)
    transform, generator = ImageTransform(contract), random.Random(0)  # noqa: S311  not for secrets
    each = math.ceil(_NUM_IMAGES / len(samples.images))
    images = filter(None, map(_readable, samples.images[:_NUM_IMAGES]))
    crops = [transform.pixels(_cropped(image, generator)) for image in images for _ in range(each)]
    if not crops:
        raise ValueError(
            f"none of the first {min(_NUM_IMAGES, len(samples.images))} images of {samples.name} can be read, so there "
            "is nothing to find ranges of values with; give another data set with --calibration"
        )
    return as_taken(torch.stack([torch.from_numpy(crop).movedim(-1, 0) for crop in crops]), contract, preprocess)


def _readable(data: bytes) -> Image.Image | None:
    try:
        return load_image(data)
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
