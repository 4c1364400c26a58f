"""Augmentations for classification: Mixup, CutMix and random erasing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor

from mobileclip.data.augmentation.policy import bounds, increasing
from mobileclip.data.randomness import random_index, uniform
from mobileclip.strict import strict

if TYPE_CHECKING:
    from mobileclip.data.images.resize import Pixels


# Mean and standard deviation of ImageNet's pixels, per RGB channel, on the scale 0 to 255.
_MEAN = np.array((0.485, 0.456, 0.406)) * 255
_STD = np.array((0.229, 0.224, 0.225)) * 255
_NUM_ATTEMPTS = 10


@attrs.frozen(kw_only=True, field_transformer=strict)
class RandomErasingSpec:
    """Random erasing: replace a rectangle in some images with noise that has ImageNet's mean and standard deviation.

    Args:
        probability: probability that a rectangle of an image is erased, from 0 to 1.
        area: minimum and maximum fraction of the image that is erased, in (0, 1].
        ratio: minimum and maximum aspect ratio (height / width) of the rectangle, above 0.

    Raises:
        ValueError: if `probability`, `area` or `ratio` is out of range.

    Source: Zhong et al. 2017, "Random Erasing Data Augmentation"; the defaults are those of FastViT's training script
        (timm's mode `pixel`).

    Differs: noise is clipped to 0 to 255, because this class erases pixels before normalisation.

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
            raise ValueError(f"area must contain fractions of the image, at most 1, not {self.area}")

    def apply(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Return an image, in which a rectangle may be erased; the input array is never modified.

        Shape:
            `(height, width, 3)`, uint8.

        Args:
            pixels: RGB image.
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
    """Draw normal numbers by the Box-Muller transform: `rng.random` gives the same numbers in every numpy version."""
    first, second = rng.random(shape), rng.random(shape)
    normal: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.sqrt(-2 * np.log1p(-first)) * np.cos(
        2 * math.pi * second
    )
    return normal


@attrs.frozen(kw_only=True, field_transformer=strict)
class MixingSpec:
    """Apply either Mixup or CutMix to a whole batch, with one mixing weight for all images.

    Image `i` is mixed with image `j = B - 1 - i`. With a share `s` from Beta(alpha, alpha), Mixup returns `s x_i + (1 -
    s) x_j`. CutMix returns `x_i` with a rectangle of `x_j`. The rectangle covers `1 - s` of the image unless the
    image's border clips the rectangle. Targets are mixed in proportion to the pixels.

    Args:
        mixup_alpha: alpha of the Beta distribution of Mixup's share, from 0 to 1000; 0 turns Mixup off.
        cutmix_alpha: alpha of the Beta distribution of CutMix's share, from 0 to 1000; 0 turns CutMix off.
        cutmix_share: fraction of the mixed batches that use CutMix, if both alphas are positive.
        probability: probability that a batch is mixed, in (0, 1].

    Raises:
        ValueError: if a number is out of range, or both alphas are 0.

    Source: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix". The defaults are those of FastViT's training script,
        which also mixes per batch.

    Examples:
        >>> images, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
        >>> mixed, shares = MixingSpec().mix(images, targets)
        >>> mixed.shape, bool(torch.allclose(shares.sum(dim=1), torch.ones(4)))
        (torch.Size([4, 3, 8, 8]), True)
    """

    mixup_alpha: float = attrs.field(default=0.2, validator=[validators.ge(0), validators.le(1000)])
    cutmix_alpha: float = attrs.field(default=1.0, validator=[validators.ge(0), validators.le(1000)])
    cutmix_share: float = attrs.field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    probability: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])

    def __attrs_post_init__(self) -> None:
        if self.mixup_alpha == 0 and self.cutmix_alpha == 0:
            raise ValueError("mixup_alpha and cutmix_alpha are both 0, so nothing would be mixed; omit MixingSpec")

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets; the random numbers come from torch's default CPU generator.

        Shape:
            images `(batch, channels, height, width)` and targets `(batch, classes)` -> the same shapes.

        Args:
            images: batch of images, which is not modified.
            targets: class probabilities per image.
        """
        mixture = self.draw(images.shape, images.device)
        if mixture is None:
            return images, targets
        return mixture.images(images, images.flip(0)), mixture.between(targets, targets.flip(0))

    def draw(self, shape: Sequence[int], device: torch.device) -> Mixture | None:
        """Draw the mixing weights of a batch; return None if the batch is not mixed.

        Args:
            shape: shape of the batch's images; height and width are the last two dimensions.
            device: device of the images.
        """
        if _uniform() >= self.probability:
            return None
        cuts = self.mixup_alpha == 0 or (self.cutmix_alpha > 0 and _uniform() < self.cutmix_share)
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if not cuts:
            return Mixture(share=torch.tensor(share, device=device))
        height, width = shape[-2:]
        side = math.sqrt(1 - share)
        top, bottom = _span(height, side)
        left, right = _span(width, side)
        own = torch.ones(height, width, dtype=torch.bool)
        own[top:bottom, left:right] = False
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return Mixture(share=torch.tensor(share, device=device), own=own.to(device))


@attrs.frozen(kw_only=True, eq=False)
class Mixture:
    """The mixing weights of one batch for Mixup or CutMix, as tensors.

    The weights are tensors because `torch.compile` would recompile for every new Python number.

    Shape:
        share: a scalar; own: (height, width), bool.

    Args:
        share: weight of an image's own pixels, from 0 to 1.
        own: mask of the pixels that CutMix keeps from the image itself; None for Mixup.
    """

    share: Tensor
    own: Tensor | None = None

    def images(self, images: Tensor, partners: Tensor) -> Tensor:
        """Return images (a batch or part of a batch) mixed with partner images; neither tensor is modified.

        Shape:
            two normalised tensors `(batch, channels, height, width)` -> the same shape.
        """
        return self.between(images, partners) if self.own is None else torch.where(self.own, images, partners)

    def between(self, x: Tensor, partners: Tensor) -> Tensor:
        """Return the weighted mean of `x` and `partners`; `share` is the weight of `x`."""
        return self.share * x + (1 - self.share) * partners


def _uniform() -> float:
    return float(torch.rand(()))


def _span(length: int, fraction: float) -> tuple[int, int]:
    """Return the start and the exclusive end of a span around a random centre; the span is clipped to `length`."""
    size, centre = int(length * fraction), int(_uniform() * length)
    return max(0, centre - size // 2), min(length, centre + size - size // 2)
