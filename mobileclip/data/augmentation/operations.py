"""The image operations of RandAugment on Pillow, pixel for pixel those of torchvision.

The order of `OPERATIONS` is the index under which the public data sets store an operation: it never changes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import attrs
import numpy as np
from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from collections.abc import Callable

RgbImage = Image.Image

_BLACK = (0, 0, 0)
# RandAugment's largest translation is 150 pixels of the 331 pixels wide images that its authors searched on.
_MAX_TRANSLATION = 150.0 / 331.0


@attrs.frozen
class Operation:
    """One operation of RandAugment.

    Args:
        name: torchvision's name.
        apply: `(image, magnitude) -> image`.
        signed: whether the magnitude's sign is drawn too.
        translates: whether the magnitude is a number of pixels.
    """

    name: str
    apply: Callable[[RgbImage, float], RgbImage]
    signed: bool = False
    translates: bool = False


def _affine(image: RgbImage, matrix: tuple[float, float, float, float, float, float]) -> RgbImage:
    """Resample with the nearest pixel; `matrix` maps output coordinates to input ones; outside is black."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_BLACK)


def _shear_angle(magnitude: float) -> float:
    """Return the shear's angle in radians, through degrees as torchvision does: ties round the same way."""
    return math.radians(math.degrees(math.atan(magnitude)))


def shear_x(image: RgbImage, magnitude: float) -> RgbImage:
    """Move row `y` by `magnitude * y` pixels to the left."""
    return _affine(image, (1.0, math.tan(_shear_angle(magnitude)), 0.0, 0.0, 1.0, 0.0))


def shear_y(image: RgbImage, magnitude: float) -> RgbImage:
    """Move column `x` by `magnitude * x` pixels upwards."""
    angle = _shear_angle(magnitude)
    return _affine(image, (1.0, 0.0, 0.0, math.sin(angle) / math.cos(angle), 1.0, 0.0))


def translate_x(image: RgbImage, magnitude: float) -> RgbImage:
    """Move the image right by whole pixels, `magnitude` cut towards zero."""
    return _affine(image, (1.0, 0.0, float(-int(magnitude)), 0.0, 1.0, 0.0))


def translate_y(image: RgbImage, magnitude: float) -> RgbImage:
    """Move the image down by whole pixels, `magnitude` cut towards zero."""
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(magnitude))))


def rotate(image: RgbImage, magnitude: float) -> RgbImage:
    """Turn the image around its centre by `magnitude` degrees, counter-clockwise; corners become black."""
    return image.rotate(magnitude, Image.Resampling.NEAREST, fillcolor=_BLACK)


def _blended(image: RgbImage, level: int, factor: float) -> RgbImage:
    """Blend with one level, `level + factor (pixel - level)`, by a table of all pixels that Pillow's blending makes."""
    table = Image.blend(Image.new("L", (256, 1), level), Image.frombytes("L", (256, 1), bytes(range(256))), factor)
    return image.point(list(table.tobytes()) * 3)


def brightness(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with black: `(1 + magnitude) * pixel`."""
    return _blended(image, 0, 1.0 + magnitude)


def color(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with the grey image: below zero paler, above zero more colourful."""
    return ImageEnhance.Color(image).enhance(1.0 + magnitude)


def contrast(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with the mean grey: below zero flatter, above zero more contrast."""
    grey = image.convert("L")
    counts = grey.histogram()
    mean = sum(level * count for level, count in enumerate(counts)) / (grey.width * grey.height)
    return _blended(image, int(mean + 0.5), 1.0 + magnitude)


def sharpness(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with the smoothed image: below zero softer, above zero sharper."""
    return Image.blend(_smoothed(image), image, 1.0 + magnitude)


def _smoothed(image: RgbImage) -> RgbImage:
    """Return the mean over 3 x 3 pixels, the middle one counted five times, as Pillow's `SMOOTH`; the rim stays.

    Pillow computes with floats, several times slower. Sums of 13 pixels never lie half-way, so both round alike.
    """
    pixels = np.array(image).reshape(image.height, -1)
    if image.height >= 3 and image.width >= 3:
        wide = pixels.astype(np.uint16)
        middle = wide[1:-1, 3:-3]
        columns = wide[:-2] + wide[2:]
        columns += wide[1:-1]
        total = columns[:, :-6] + columns[:, 3:-3]
        total += columns[:, 6:]
        middle *= 4
        total += middle
        total += 6
        total //= 13
        pixels[1:-1, 3:-3] = total
    return Image.fromarray(pixels.reshape(image.height, image.width, 3))


def posterize(image: RgbImage, magnitude: float) -> RgbImage:
    """Keep the `magnitude` highest bits of every channel."""
    from PIL import ImageOps

    return ImageOps.posterize(image, int(magnitude))


def solarize(image: RgbImage, magnitude: float) -> RgbImage:
    """Invert every channel from `magnitude` on."""
    return image.point([value if value < magnitude else 255 - value for value in range(256)] * 3)


def auto_contrast(image: RgbImage, _magnitude: float) -> RgbImage:
    """Stretch every channel to the whole range."""
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def equalize(image: RgbImage, _magnitude: float) -> RgbImage:
    """Make every channel's histogram flat."""
    from PIL import ImageOps

    return ImageOps.equalize(image)


OPERATIONS = (
    Operation("Identity", lambda image, _: image),
    Operation("ShearX", shear_x, signed=True),
    Operation("ShearY", shear_y, signed=True),
    Operation("TranslateX", translate_x, signed=True, translates=True),
    Operation("TranslateY", translate_y, signed=True, translates=True),
    Operation("Rotate", rotate, signed=True),
    Operation("Brightness", brightness, signed=True),
    Operation("Color", color, signed=True),
    Operation("Contrast", contrast, signed=True),
    Operation("Sharpness", sharpness, signed=True),
    Operation("Posterize", posterize),
    Operation("Solarize", solarize),
    Operation("AutoContrast", auto_contrast),
    Operation("Equalize", equalize),
)


@cache
def magnitudes(num_bins: int, side: int) -> tuple[tuple[float, ...], ...]:
    """Return the strength of every operation for every bin, unsigned, as torchvision rounds it (float32).

    Args:
        num_bins: number of strengths.
        side: side of the image, in pixels, that translations are a fraction of.

    Returns:
        per operation, in the order of `OPERATIONS`, `num_bins` numbers: slopes, pixels, degrees, changes of a blending
        factor, bits, thresholds; zeros where an operation has no strength.
    """
    import torch

    def line(start: float, stop: float) -> tuple[float, ...]:
        return tuple(torch.linspace(start, stop, num_bins).tolist())

    shear, rotation, blend, none = line(0.0, 0.3), line(0.0, 30.0), line(0.0, 0.9), (0.0,) * num_bins
    translation = line(0.0, _MAX_TRANSLATION * side)
    bits = tuple((8 - (torch.arange(num_bins) / ((num_bins - 1) / 4)).round()).tolist())
    threshold = line(255.0, 0.0)
    return (
        none,
        *(shear, shear, translation, translation, rotation),
        *(blend, blend, blend, blend),
        *(bits, threshold),
        *(none, none),
    )
