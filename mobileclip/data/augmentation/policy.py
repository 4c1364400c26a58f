"""Augmentations that are sampled once, stored as a few numbers and replayed bit for bit at any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import validators
from PIL import Image

from mobileclip.data.augmentation.operations import INDICES, augmentation_operations, operation_of, strengths_of
from mobileclip.data.images.resize import resize
from mobileclip.data.randomness import random_index, seeded_rng, uniform
from mobileclip.inputs import MAX_SIZE, Interpolation
from mobileclip.registry import Registry
from mobileclip.strict import strict

if TYPE_CHECKING:
    import numpy as np

CompressedAugmentation = list[Any]

# Number of attempts to fit a crop into the image before falling back to a central crop, as in torchvision.
_NUM_ATTEMPTS = 10


def _crop(values: Iterable[int]) -> tuple[int, int, int, int]:
    top, left, height, width = values
    return top, left, height, width


def _operations(values: Iterable[Sequence[Any]]) -> tuple[tuple[int | str, float], ...]:
    return tuple([(index, float(magnitude)) for index, magnitude in values])


@attrs.frozen(kw_only=True)
class AugmentationParams:
    """The parameters of one augmentation of one image.

    Args:
        crop: top, left, height and width of the crop, in pixels of the source image.
        operations: pairs of an operation and its signed magnitude, in order of application. The operation is an index
            in `OPERATIONS` or a name in `augmentation_operations`.
        image_size: width and height of the source image, in pixels, or None if unknown; replay rejects images of any
            other size.

    Raises:
        ValueError: if the crop is empty or exceeds `image_size`, an operation is unknown, or a magnitude is not finite.
    """

    crop: tuple[int, int, int, int] = attrs.field(converter=_crop)
    operations: tuple[tuple[int | str, float], ...] = attrs.field(default=(), converter=_operations)
    image_size: tuple[int, int] | None = None

    def __attrs_post_init__(self) -> None:
        # Spelled out for speed: every sample has dozens of these objects.
        top, left, height, width = self.crop
        if not (isinstance(top, int) and isinstance(left, int) and isinstance(height, int) and isinstance(width, int)):
            raise ValueError(f"a crop must be four integers in pixels (top, left, height, width), not {self.crop}")
        if top < 0 or left < 0 or height < 1 or width < 1:
            raise ValueError(f"crop {self.crop} (top, left, height, width) is empty or starts outside the image")
        for stored, magnitude in self.operations:
            operation = operation_of(stored)
            if not math.isfinite(magnitude):
                raise ValueError(f"the magnitude of operation {operation.name} is {magnitude}, not a finite number")
        if self.image_size is not None:
            self.check_fits(self.image_size)

    def check_fits(self, size: tuple[int, int]) -> None:
        """Raise unless these parameters can be replayed on an image of `size` (width, height).

        Raises:
            ValueError: if the parameters were sampled for a different size, or the crop exceeds the image.
        """
        if self.image_size is not None and tuple(self.image_size) != tuple(size):
            raise ValueError(
                f"the augmentation was made for an image of {self.image_size[0]}x{self.image_size[1]} pixels, but this "
                f"image has {size[0]}x{size[1]}; replay needs the reinforced copy of the image"
            )
        top, left, height, width = self.crop
        if left + width > size[0] or top + height > size[1]:
            raise ValueError(
                f"crop {self.crop} (top, left, height, width) exceeds the image of {size[0]}x{size[1]} pixels; replay "
                "needs the reinforced copy of the image"
            )


def compress(params: AugmentationParams) -> CompressedAugmentation:
    """Return the parameters in the public JSON form: `[[top, left, height, width], [[operation, magnitude], ...]]`.

    A torchvision operation becomes an index, which the public loaders understand; any other operation becomes a name.
    The result lacks the size of the source image; pass the size to `decompress`.
    """
    return [list(params.crop), [[index, magnitude] for index, magnitude in params.operations]]


def decompress(compressed: Any, image_size: tuple[int, int] | None = None) -> AugmentationParams:
    """Return exactly the parameters that were passed to `compress`.

    Args:
        compressed: parameters in the form that `compress` returns; an empty list of operations may be missing or None.
        image_size: width and height of the source image, in pixels; None if unknown.

    Raises:
        ValueError: if `compressed` is malformed, or `AugmentationParams` rejects the values.
    """
    try:
        crop, operations = compressed if len(compressed) == 2 else (*compressed, None)
        return AugmentationParams(crop=crop, operations=operations or (), image_size=image_size)
    except TypeError:
        raise ValueError(_malformed(compressed)) from None
    except ValueError as error:
        if "unpack" in str(error) or "could not convert" in str(error):
            raise ValueError(_malformed(compressed)) from None
        raise


def _malformed(compressed: Any) -> str:
    return (
        f"{str(compressed)[:80]!r} is not a stored augmentation; "
        "expected [[top, left, height, width], [[operation, magnitude], ...]]"
    )


def bounds(values: Iterable[float]) -> tuple[float, float]:
    """Convert a lower and an upper bound, such as the `scale` of `AugmentationSpec`, to floats."""
    low, high = values
    return float(low), float(high)


def increasing(_: object, attribute: attrs.Attribute[tuple[float, float]], value: tuple[float, float]) -> None:
    """Validate a lower and an upper bound, such as the `scale` of `AugmentationSpec`.

    Raises:
        ValueError: if a bound is not positive, or the lower bound is above the upper bound.
    """
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"{attribute.name} must be two positive numbers, the lower first, not {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class AugmentationSpec:
    """A random resized crop followed by RandAugment, with methods to sample, store and apply augmentations.

    The crop covers a uniformly drawn fraction `scale` of the area at a log-uniform aspect ratio, and is resized to
    `size` x `size`. Then `num_operations` operations, drawn with replacement, are applied one after another.

    Args:
        size: side of the output, in pixels.
        scale: minimum and maximum area of the crop as a fraction of the image, in (0, 1].
        ratio: minimum and maximum aspect ratio (width / height) of the crop.
        interpolation: filter of the antialiased resize. The RandAugment operations always use the nearest pixel and
            fill with black.
        num_operations: number of RandAugment operations; 0 applies only the crop.
        magnitude: index of the strength bin, from 0 to `num_bins - 1`.
        num_bins: number of strength bins.
        reference_size: side of the image, in pixels, for which translations are sampled.
        scale_translations: whether replay rescales translations from `reference_size` to `size`. The public data sets
            use False: at another size, the student's image is moved by another fraction than the teachers' image.
        operation_probability: probability that each drawn operation is applied; 1 applies all of them.
        operations: names in `augmentation_operations` to draw from; torchvision's 14 operations by default. Cards and
            stored augmentations refer to other operations by name.

    Raises:
        ValueError: if a number is out of range, or an operation does not exist.

    Source: section 4 and appendix of the MobileCLIP paper; Cubuk et al. 2020 for RandAugment.

    Examples:
        >>> params = AugmentationSpec(size=224).sample(augmentation_rng(0, "a key", 0), (640, 480))
        >>> from PIL import Image
        >>> AugmentationSpec(size=256).apply(Image.new("RGB", (640, 480)), params).size  # replayed at another size
        (256, 256)
    """

    size: int = attrs.field(validator=[validators.gt(0), validators.le(MAX_SIZE)])
    scale: tuple[float, float] = attrs.field(default=(0.08, 1.0), converter=bounds, validator=increasing)
    ratio: tuple[float, float] = attrs.field(default=(3 / 4, 4 / 3), converter=bounds, validator=increasing)
    interpolation: Interpolation = attrs.field(default="bicubic", validator=validators.in_(("bilinear", "bicubic")))
    num_operations: int = attrs.field(default=2, validator=[validators.ge(0), validators.le(100)])
    magnitude: int = attrs.field(default=9, validator=validators.ge(0))
    num_bins: int = attrs.field(default=31, validator=[validators.gt(1), validators.le(10_000)])
    reference_size: int = attrs.field(default=224, validator=[validators.gt(0), validators.le(MAX_SIZE)])
    scale_translations: bool = False
    operation_probability: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    operations: tuple[str, ...] = attrs.field(default=tuple(INDICES), validator=validators.min_len(1))

    def __attrs_post_init__(self) -> None:
        for name in self.operations:
            operation_of(name)
        if self.scale[1] > 1:
            raise ValueError(f"scale must contain fractions of the image's area, at most 1, not {self.scale}")
        if self.magnitude >= self.num_bins:
            raise ValueError(f"magnitude {self.magnitude} must be below num_bins {self.num_bins}")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> AugmentationParams:
        """Draw the parameters of one augmentation.

        Args:
            rng: source of randomness; `augmentation_rng` returns a generator that depends on the sample.
            size: width and height of the source image, in pixels, like `PIL.Image.size`.

        Raises:
            ValueError: if the width or the height is below 1.
        """
        width, height = size
        if width < 1 or height < 1:
            raise ValueError(f"an image of {width}x{height} pixels cannot be augmented")
        crop = self._sample_crop(rng, width, height)
        operations = []
        for _ in range(self.num_operations):
            # Draw no random number if all operations are applied, so that earlier samples stay reproducible.
            if self.operation_probability < 1 and rng.random() >= self.operation_probability:
                continue
            operation = augmentation_operations[self.operations[random_index(rng, len(self.operations))]]
            magnitude = strengths_of(operation, self.num_bins, self.reference_size)[self.magnitude]
            if operation.signed and random_index(rng, 2):
                magnitude = -magnitude
            name = operation.replayed_as or operation.name
            operations.append((INDICES.get(name, name), magnitude))
        return AugmentationParams(crop=crop, operations=operations, image_size=(width, height))

    def apply(self, image: Image.Image, params: AugmentationParams) -> Image.Image:
        """Return the augmented image, `size` x `size`, RGB; equal arguments give equal bits.

        Training does not call `apply`, but decodes only the crop and calls `resize` and `operate` on the crop, which
        gives the same bits; see `SourceImage` in `mobileclip.data.loading.replay`.

        Args:
            image: source image of the size for which the parameters were sampled; converted to RGB if necessary.
            params: parameters from `sample` or `decompress`.

        Raises:
            ValueError: if the parameters were sampled for an image of a different size, or the crop exceeds the image.
        """
        params.check_fits(image.size)
        top, left, height, width = params.crop
        if image.mode != "RGB":
            image = image.convert("RGB")
        # Resizing with a box instead would let the filter see pixels around the crop.
        crop = image.crop((left, top, left + width, top + height))
        return self.operate(self.resize(crop), params.operations)

    def resize(self, crop: Image.Image) -> Image.Image:
        """Return an RGB crop resized to `size` x `size`."""
        return resize(crop, (self.size, self.size), self.interpolation)

    def operate(self, image: Image.Image, operations: Iterable[tuple[int | str, float]]) -> Image.Image:
        """Apply operations (see `AugmentationParams.operations`) in order to the resized crop."""
        for stored, magnitude in operations:
            operation = operation_of(stored)
            rescale = self.size / self.reference_size if operation.translates and self.scale_translations else 1.0
            image = operation.apply(image, magnitude * rescale)
        return image

    def _sample_crop(self, rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
        least, most = self.ratio
        for _ in range(_NUM_ATTEMPTS):
            area = width * height * uniform(rng, *self.scale)
            aspect = math.exp(uniform(rng, math.log(least), math.log(most)))
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = random_index(rng, height - crop_height + 1)
                left = random_index(rng, width - crop_width + 1)
                return top, left, crop_height, crop_width
        crop_width, crop_height = width, height
        if width / height < least:
            crop_height = max(1, min(height, round(width / least)))
        elif width / height > most:
            crop_width = max(1, min(width, round(height * most)))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def augmentation_rng(seed: int, key: str, index: int) -> np.random.Generator:
    """Return the generator of one stored augmentation, equal on every worker and machine and in any order of calls.

    Args:
        seed: seed of the reinforcement.
        key: the sample's key.
        index: index of the augmentation within the sample.
    """
    return seeded_rng(seed, "augmentation", key, index)


augmentations: Registry[Callable[[int], AugmentationSpec]] = Registry("augmentation")
"""Augmentations by name; third parties add augmentations here or by a `mobileclip.augmentation` entry point."""


@augmentations.register("datacompdr")
def datacompdr_augmentation(size: int) -> AugmentationSpec:
    """Return the policy of the public data sets: crop 8 to 100 % of the area, then 2 operations at magnitude 9 of 31.

    Args:
        size: side of the output, in pixels: 224 for the teachers, the student's input size for replay.

    Source: section 4 of the MobileCLIP paper.
    """
    return AugmentationSpec(size=size)


@augmentations.register("imagenet")
def imagenet_augmentation(size: int) -> AugmentationSpec:
    """Return the policy for ImageNet classifiers: crop 8 to 100 % of the area, then RandAugment `m9`, `n2`.

    FastViT is trained with timm's `rand-m9-mstd0.5-inc1`, which applies each of two operations with probability 1/2 at
    9/10 of the operation's maximum strength. torchvision's magnitude 9, which the reinforced data sets store, is 9/30
    of the maximum.

    Args:
        size: side of the output, in pixels.

    Source: FastViT (arXiv 2303.14189) and its released training script.

    Differs: this policy uses torchvision's 14 operations, with timm's number of bits for posterise (1 at this
        strength). timm has no identity operation, but has invert and solarise-add. The strength is always 9/10; timm
        adds normal noise with a standard deviation of 0.05.
    """
    return AugmentationSpec(
        size=size,
        magnitude=9,
        num_bins=11,
        operation_probability=0.5,
        reference_size=size,
        scale_translations=True,
        operations=tuple("PosterizeIncreasing" if name == "Posterize" else name for name in INDICES),
    )


@augmentations.register("crop")
def crop_augmentation(size: int) -> AugmentationSpec:
    """Return the weak augmentation of plain CLIP training: a random crop of 90 to 100 percent of the area, resized.

    Args:
        size: side of the output, in pixels.
    """
    return AugmentationSpec(size=size, scale=(0.9, 1.0), num_operations=0)
