"""RandAugment's image operations for Pillow, equal to torchvision's bit for bit, and a registry of operations.

The public data sets store an operation by its index in `OPERATIONS`, so the order never changes. Operations of other
packages are stored by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import attrs
import numpy as np
from PIL import Image, ImageEnhance

from mobileclip.registry import Registry

RgbImage = Image.Image
Strengths = Callable[[int, int], tuple[float, ...]]

_BLACK = (0, 0, 0)
# RandAugment's largest translation is 150 pixels, for the 331-pixel images on which its authors ran their search.
_MAX_TRANSLATION = 150.0 / 331.0


def _without_strength(num_bins: int, _side: int) -> tuple[float, ...]:
    return (0.0,) * num_bins


@attrs.frozen(eq=False)
class Operation:
    """One operation of RandAugment.

    Args:
        name: name in the registry; samples store this name if the operation is not in `OPERATIONS`.
        apply: function `(image, magnitude) -> image` that returns an RGB image of the same size; equal arguments give
            equal bits.
        strengths: function `(number of bins, side of the image in pixels) -> unsigned magnitude of every bin`.
        signed: whether the sign of the magnitude is drawn at random.
        translates: whether the magnitude is a number of pixels.
        replayed_as: name of the operation that is stored and replayed instead; that operation has the same `apply`, but
            other strengths. None stores this operation.

    Examples:
        >>> from PIL import Image, ImageOps
        >>> invert = Operation("Invert", lambda image, _: ImageOps.invert(image))
        >>> invert.apply(Image.new("RGB", (1, 1)), 0.0).getpixel((0, 0))
        (255, 255, 255)
    """

    name: str
    apply: Callable[[RgbImage, float], RgbImage]
    strengths: Strengths = _without_strength
    signed: bool = False
    translates: bool = False
    replayed_as: str | None = None


def _affine(image: RgbImage, matrix: tuple[float, float, float, float, float, float]) -> RgbImage:
    """Resample by the nearest pixel; `matrix` maps output to input coordinates; pixels outside the input are black."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_BLACK)


def _shear_angle(magnitude: float) -> float:
    """Return the shear angle in radians, computed through degrees like torchvision so that ties round the same way."""
    return math.radians(math.degrees(math.atan(magnitude)))


def shear_x(image: RgbImage, magnitude: float) -> RgbImage:
    """Move row `y` by `magnitude * y` pixels to the left."""
    return _affine(image, (1.0, math.tan(_shear_angle(magnitude)), 0.0, 0.0, 1.0, 0.0))


def shear_y(image: RgbImage, magnitude: float) -> RgbImage:
    """Move column `x` by `magnitude * x` pixels upwards."""
    angle = _shear_angle(magnitude)
    return _affine(image, (1.0, 0.0, 0.0, math.sin(angle) / math.cos(angle), 1.0, 0.0))


def translate_x(image: RgbImage, magnitude: float) -> RgbImage:
    """Move the image right by whole pixels: `magnitude` is truncated towards zero."""
    return _affine(image, (1.0, 0.0, float(-int(magnitude)), 0.0, 1.0, 0.0))


def translate_y(image: RgbImage, magnitude: float) -> RgbImage:
    """Move the image down by whole pixels: `magnitude` is truncated towards zero."""
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(magnitude))))


def rotate(image: RgbImage, magnitude: float) -> RgbImage:
    """Rotate the image around its centre by `magnitude` degrees counter-clockwise; empty corners become black."""
    return image.rotate(magnitude, Image.Resampling.NEAREST, fillcolor=_BLACK)


def _blended(image: RgbImage, level: int, factor: float) -> RgbImage:
    """Blend with one grey level by a lookup table from `Image.blend`: `level + factor (pixel - level)`."""
    table = Image.blend(Image.new("L", (256, 1), level), Image.frombytes("L", (256, 1), bytes(range(256))), factor)
    return image.point(list(table.tobytes()) * 3)


def brightness(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with black: `(1 + magnitude) * pixel`."""
    return _blended(image, 0, 1.0 + magnitude)


def color(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with the grey image: a negative magnitude weakens colours, a positive magnitude strengthens colours."""
    return ImageEnhance.Color(image).enhance(1.0 + magnitude)


def contrast(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with the mean grey level: a negative magnitude lowers contrast, a positive magnitude raises contrast."""
    grey = image.convert("L")
    counts = grey.histogram()
    mean = sum(level * count for level, count in enumerate(counts)) / (grey.width * grey.height)
    return _blended(image, int(mean + 0.5), 1.0 + magnitude)


def sharpness(image: RgbImage, magnitude: float) -> RgbImage:
    """Blend with the smoothed image: a negative magnitude blurs, a positive magnitude sharpens."""
    return Image.blend(_smoothed(image), image, 1.0 + magnitude)


def _smoothed(image: RgbImage) -> RgbImage:
    """Return the 3 x 3 mean with weight 5 for the middle pixel, like Pillow's `SMOOTH`; border pixels are kept.

    Pillow computes in floats and is several times slower. An integer divided by 13 is never half-way between two
    integers, so this function and Pillow round alike.
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
    """Invert every channel value that is at least `magnitude`."""
    return image.point([value if value < magnitude else 255 - value for value in range(256)] * 3)


def auto_contrast(image: RgbImage, _magnitude: float) -> RgbImage:
    """Stretch every channel to the full range, 0 to 255."""
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def equalize(image: RgbImage, _magnitude: float) -> RgbImage:
    """Make every channel's histogram flat."""
    from PIL import ImageOps

    return ImageOps.equalize(image)


def _line(start: float, stop: float) -> Strengths:
    """Return a function for strengths evenly spaced from `start` to `stop`, in float32 like torchvision's."""

    def strengths(num_bins: int, _side: int) -> tuple[float, ...]:
        import torch

        return tuple(torch.linspace(start, stop, num_bins).tolist())

    return strengths


def _pixels(num_bins: int, side: int) -> tuple[float, ...]:
    return _line(0.0, _MAX_TRANSLATION * side)(num_bins, side)


def _bits(num_bins: int, _side: int) -> tuple[float, ...]:
    import torch

    return tuple((8 - (torch.arange(num_bins) / ((num_bins - 1) / 4)).round()).tolist())


def _few_bits(num_bins: int, _side: int) -> tuple[float, ...]:
    """Return timm's bits for posterise, from 4 to 1 (timm ends at 0, a black image); torchvision's go from 8 to 4."""
    return tuple(max(1.0, 4.0 - int(index / (num_bins - 1) * 4)) for index in range(num_bins))


_SHEAR, _BLEND = _line(0.0, 0.3), _line(0.0, 0.9)
OPERATIONS = (
    Operation("Identity", lambda image, _: image),
    Operation("ShearX", shear_x, _SHEAR, signed=True),
    Operation("ShearY", shear_y, _SHEAR, signed=True),
    Operation("TranslateX", translate_x, _pixels, signed=True, translates=True),
    Operation("TranslateY", translate_y, _pixels, signed=True, translates=True),
    Operation("Rotate", rotate, _line(0.0, 30.0), signed=True),
    Operation("Brightness", brightness, _BLEND, signed=True),
    Operation("Color", color, _BLEND, signed=True),
    Operation("Contrast", contrast, _BLEND, signed=True),
    Operation("Sharpness", sharpness, _BLEND, signed=True),
    Operation("Posterize", posterize, _bits),
    Operation("Solarize", solarize, _line(255.0, 0.0)),
    Operation("AutoContrast", auto_contrast),
    Operation("Equalize", equalize),
)
INDICES = {operation.name: index for index, operation in enumerate(OPERATIONS)}

augmentation_operations: Registry[Operation] = Registry("augmentation_operation")
"""Operations by name; third parties add operations here or by a `mobileclip.augmentation_operation` entry point."""
for _operation in (*OPERATIONS, Operation("PosterizeIncreasing", posterize, _few_bits, replayed_as="Posterize")):
    augmentation_operations.add(_operation.name, _operation)


def operation_of(stored: int | str) -> Operation:
    """Return a stored operation, found by its index in `OPERATIONS` or by its name.

    Raises:
        ValueError: if the index or the name is unknown.
    """
    if isinstance(stored, int) and 0 <= stored < len(OPERATIONS):
        return OPERATIONS[stored]
    if not isinstance(stored, str):
        raise ValueError(
            f"operation {stored!r} is unknown; expected an index from 0 to {len(OPERATIONS) - 1} or a name"
        )
    if stored not in augmentation_operations:
        raise ValueError(augmentation_operations.unknown(stored))
    return augmentation_operations[stored]


@cache
def strengths_of(operation: Operation, num_bins: int, side: int) -> tuple[float, ...]:
    """Return the unsigned magnitude of an operation for every bin; see `magnitudes`."""
    return operation.strengths(num_bins, side)


def magnitudes(num_bins: int, side: int) -> tuple[tuple[float, ...], ...]:
    """Return the unsigned magnitude of every operation for every bin, rounded to float32 like torchvision's.

    Args:
        num_bins: number of strength bins.
        side: side of the image, in pixels; translations are a fraction of this side.

    Returns:
        `num_bins` numbers for each operation, in the order of `OPERATIONS`: slopes, pixels, degrees, changes of a
        blending factor, bits or thresholds; zeros if the operation has no strength.
    """
    return tuple(strengths_of(operation, num_bins, side) for operation in OPERATIONS)
