"""Random erasing: a rectangle of a training image becomes noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import validators

from mobileclip.data.augmentation.replay import bounds, increasing
from mobileclip.data.randomness import random_index, uniform
from mobileclip.strict import strict

if TYPE_CHECKING:
    from mobileclip.data.images.resize import Pixels

# Of ImageNet's pixels, per RGB channel, in levels of 255.
_MEAN = np.array((0.485, 0.456, 0.406)) * 255
_STD = np.array((0.229, 0.224, 0.225)) * 255
_NUM_ATTEMPTS = 10


@attrs.frozen(kw_only=True, field_transformer=strict)
class RandomErasingSpec:
    """Of some images, a rectangle becomes noise with the mean and the deviation of ImageNet's pixels.

    Args:
        probability: of an image to lose a rectangle.
        area: least and greatest fraction of the image that is erased; at most 1.
        ratio: least and greatest height over width of what is erased.

    Raises:
        ValueError: if a number is out of its range.

    Source: Zhong et al. 2017, "Random Erasing Data Augmentation"; the defaults are those of FastViT's training script,
        timm's mode `pixel`.

    Differs: noise beyond 0 to 255 is cut, since pixels and not normalised numbers are erased.

    Examples:
        >>> import numpy
        >>> pixels = numpy.zeros((8, 8, 3), numpy.uint8)
        >>> erased = RandomErasingSpec(probability=1.0).apply(pixels, augmentation_rng(0, "a key", 0))
        >>> bool(erased.any()), bool(erased.all()), bool(pixels.any())
        (True, False, False)
    """

    probability: float = attrs.field(default=0.25, validator=[validators.ge(0), validators.le(1)])
    area: tuple[float, float] = attrs.field(default=(0.02, 1 / 3), converter=bounds, validator=increasing)
    ratio: tuple[float, float] = attrs.field(default=(0.3, 1 / 0.3), converter=bounds, validator=increasing)

    def __attrs_post_init__(self) -> None:
        if self.area[1] > 1:
            raise ValueError(f"area is a fraction of the image, at most 1, not {self.area}")

    def apply(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Return an image, erased or as it is; the given one is not changed.

        Shape:
            `(height, width, 3)`, uint8.

        Args:
            pixels: the image.
            rng: source of randomness.
        """
        if rng.random() >= self.probability:
            return pixels
        height, width = pixels.shape[:2]
        for _ in range(_NUM_ATTEMPTS):
            area = height * width * uniform(rng, *self.area)
            ratio = math.exp(uniform(rng, *map(math.log, self.ratio)))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < rows < height and 0 < columns < width:
                top, left = random_index(rng, height - rows + 1), random_index(rng, width - columns + 1)
                erased: Pixels = pixels.copy()
                noise = _MEAN + _STD * _normal(rng, (rows, columns, 3))
                erased[top : top + rows, left : left + columns] = noise.round().clip(0, 255)
                return erased
        return pixels


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return normal numbers by Box and Muller's way, of the numbers that every version of numpy draws alike."""
    first, second = rng.random(shape), rng.random(shape)
    normal: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.sqrt(-2 * np.log1p(-first)) * np.cos(
        2 * math.pi * second
    )
    return normal
