"""Augmentation that is sampled once, stored in a few numbers, and replayed to the last bit at any size."""

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

# Attempts to fit a crop into the image before the central crop is taken, as in torchvision.
_NUM_ATTEMPTS = 10


def _crop(values: Iterable[int]) -> tuple[int, int, int, int]:
    top, left, height, width = values
    return top, left, height, width


def _operations(values: Iterable[Sequence[Any]]) -> tuple[tuple[int | str, float], ...]:
    return tuple([(index, float(magnitude)) for index, magnitude in values])


@attrs.frozen(kw_only=True)
class AugmentationParams:
    """One augmentation of one image.

    Args:
        crop: top, left, height and width in pixels of the source image.
        operations: pairs of an operation and its signed magnitude, in order; the operation by its index in
            `OPERATIONS`, or by its name in `augmentation_operations`.
        image_size: width and height of the source image, in pixels, where they are known; replay refuses another size.

    Raises:
        ValueError: if a number is out of its range, or the crop leaves an image of `image_size`.
    """

    crop: tuple[int, int, int, int] = attrs.field(converter=_crop)
    operations: tuple[tuple[int | str, float], ...] = attrs.field(default=(), converter=_operations)
    image_size: tuple[int, int] | None = None

    def __attrs_post_init__(self) -> None:
        # Written out, since every sample that is read has dozens of these.
        top, left, height, width = self.crop
        if not (isinstance(top, int) and isinstance(left, int) and isinstance(height, int) and isinstance(width, int)):
            raise ValueError(f"a crop is four whole numbers of pixels (top, left, height, width), not {self.crop}")
        if top < 0 or left < 0 or height < 1 or width < 1:
            raise ValueError(f"crop {self.crop} (top, left, height, width) is empty or starts outside of the image")
        for stored, magnitude in self.operations:
            operation = operation_of(stored)
            if not math.isfinite(magnitude):
                raise ValueError(f"the magnitude of operation {operation.name} is {magnitude}")
        if self.image_size is not None:
            self.check_fits(self.image_size)

    def check_fits(self, size: tuple[int, int]) -> None:
        """Raise unless these parameters can be replayed on an image of `size`, width and height.

        Raises:
            ValueError: if they were made for another size, or the crop leaves the image.
        """
        if self.image_size is not None and tuple(self.image_size) != tuple(size):
            raise ValueError(
                f"the augmentation was made for an image of {self.image_size[0]}x{self.image_size[1]} pixels, but this "
                f"one has {size[0]}x{size[1]}; replay needs the very copy of the image that was reinforced"
            )
        top, left, height, width = self.crop
        if left + width > size[0] or top + height > size[1]:
            raise ValueError(
                f"crop {self.crop} (top, left, height, width) leaves the image of {size[0]}x{size[1]} pixels; replay "
                "needs the very copy of the image that was reinforced"
            )


def compress(params: AugmentationParams) -> CompressedAugmentation:
    """Return the public data sets' form, `[[top, left, height, width], [[operation, magnitude], ...]]`, for JSON.

    An operation is its index, which the public loaders know, or the name of one that is none of torchvision's. The
    source image's size is not part of it; `decompress` takes it again.
    """
    return [list(params.crop), [[index, magnitude] for index, magnitude in params.operations]]


def decompress(compressed: Any, image_size: tuple[int, int] | None = None) -> AugmentationParams:
    """Return the parameters that `compress` wrote, exactly.

    Args:
        compressed: the public form; the list of operations may be missing or null where none was applied.
        image_size: width and height of the source image, where they are known.

    Raises:
        ValueError: if it does not have that form.
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
    """Convert two numbers of a spec, the lower and the higher."""
    low, high = values
    return float(low), float(high)


def increasing(_: object, attribute: attrs.Attribute[tuple[float, float]], value: tuple[float, float]) -> None:
    """Validate two numbers of a spec.

    Raises:
        ValueError: unless both are positive, and the lower one is first.
    """
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"{attribute.name} must be two positive numbers, the lower first, not {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class AugmentationSpec:
    """A random resized crop, then RandAugment: both the choices and, having no state, the augmentation itself.

    The crop covers a uniform fraction `scale` of the area at a log-uniform aspect ratio, and is resized to `size` x
    `size`; then `num_operations` of the operations are applied one after another, drawn with replacement.

    Args:
        size: side of the output, in pixels.
        scale: least and greatest fraction of the area that is cropped; in (0, 1].
        ratio: least and greatest aspect ratio (width / height) of the crop.
        interpolation: filter of the (antialiased) resize; the operations take the nearest pixel and fill with black.
        num_operations: number of operations of RandAugment; zero for the crop alone.
        magnitude: bin of the operations' strength, from 0 to `num_bins - 1`.
        num_bins: number of strengths.
        reference_size: side of the image, in pixels, in which translations are counted when they are sampled.
        scale_translations: whether replay rescales translations from `reference_size` to `size`; the public data sets
            do not, so that at another size the student sees the image moved by another fraction than the teachers did.
        operation_probability: of each operation to be applied at all; 1 applies all of them.
        operations: names in `augmentation_operations` of those that are drawn from; torchvision's 14 by default. A card
            has the names of others, and stored augmentations do.

    Raises:
        ValueError: if a number is out of its range, or there is no such operation.

    Source: section 4 and appendix of the paper; Cubuk et al. 2020 for RandAugment.

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
            raise ValueError(f"scale is a fraction of the image's area, at most 1, not {self.scale}")
        if self.magnitude >= self.num_bins:
            raise ValueError(f"magnitude {self.magnitude} must be below num_bins {self.num_bins}")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> AugmentationParams:
        """Draw the parameters of one augmentation.

        Args:
            rng: source of randomness; `augmentation_rng` ties it to the sample.
            size: width and height of the source image, in pixels, as `PIL.Image.size`.

        Raises:
            ValueError: if the image is empty.
        """
        width, height = size
        if width < 1 or height < 1:
            raise ValueError(f"an image of {width}x{height} pixels cannot be augmented")
        crop = self._sample_crop(rng, width, height)
        operations = []
        for _ in range(self.num_operations):
            # Where all are applied, no number is drawn for it: what was sampled before is sampled again.
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

        This is the replay of a whole image. Training decodes no more than the crop, and calls the two steps `resize`
        and `operate` on it (`SourceImage` of `data.loading.examples`), to the same bits.

        Args:
            image: the source image, of the size that the parameters were made for; converted to RGB if it is not.
            params: what `sample` or `decompress` returned.

        Raises:
            ValueError: if the parameters were made for an image of another size, or the crop leaves the image.
        """
        params.check_fits(image.size)
        top, left, height, width = params.crop
        if image.mode != "RGB":
            image = image.convert("RGB")
        # Resizing with a box instead would let the filter see pixels around the crop.
        crop = image.crop((left, top, left + width, top + height))
        return self.operate(self.resize(crop), params.operations)

    def resize(self, crop: Image.Image) -> Image.Image:
        """Return what was cropped, RGB, resized to `size` x `size`."""
        return resize(crop, (self.size, self.size), self.interpolation)

    def operate(self, image: Image.Image, operations: Iterable[tuple[int | str, float]]) -> Image.Image:
        """Return the cropped image after the operations, pairs as `AugmentationParams` has them, in their order."""
        for stored, magnitude in operations:
            operation = operation_of(stored)
            rescale = self.size / self.reference_size if operation.translates and self.scale_translations else 1.0
            image = operation.apply(image, magnitude * rescale)
        return image

    def compress(self, params: AugmentationParams) -> CompressedAugmentation:
        """Return the public data sets' form of the parameters; see `compress`."""
        return compress(params)

    def decompress(self, compressed: Any, image_size: tuple[int, int] | None = None) -> AugmentationParams:
        """Return the parameters from the public data sets' form; see `decompress`."""
        return decompress(compressed, image_size)

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
    """Return the generator of one stored augmentation: the same on any worker, in any order, on any machine.

    Args:
        seed: the reinforcement's seed.
        key: the sample's key.
        index: which of the sample's augmentations.
    """
    return seeded_rng(seed, "augmentation", key, index)


augmentations: Registry[Callable[[int], AugmentationSpec]] = Registry("augmentation")
"""Augmentations by name; third parties add theirs here or by an entry point in `mobileclip.augmentation`."""


@augmentations.register("datacompdr")
def datacompdr_augmentation(size: int) -> AugmentationSpec:
    """Return the policy of the public reinforced data sets: crop 0.08-1, then 2 operations at magnitude 9 of 31.

    Args:
        size: side of the output, in pixels; 224 for the teachers, the student's own when replayed.

    Source: section 4 of the paper.
    """
    return AugmentationSpec(size=size)


@augmentations.register("imagenet")
def imagenet_augmentation(size: int) -> AugmentationSpec:
    """Return what classifiers are trained with on ImageNet: crop 0.08-1, then RandAugment of `m9`, `n2`.

    timm's `rand-m9-mstd0.5-inc1`, by which FastViT is trained, applies each of two operations with probability 1/2 at
    9/10 of its greatest strength; torchvision's magnitude 9, which the reinforced data sets store, is 9/30 of it.

    Args:
        size: side of the output, in pixels.

    Source: FastViT (arXiv 2303.14189) and its released training script.

    Differs: its operations are torchvision's 14, posterising to timm's number of bits (1 at this strength); timm's have
        no identity, but inversion and added solarising. The strength is 9/10, without timm's normal noise of deviation
        0.05.
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
    """Return the weak augmentation of plain CLIP training: a random crop of 90 to 100 percent, resized.

    Args:
        size: side of the output, in pixels.
    """
    return AugmentationSpec(size=size, scale=(0.9, 1.0), num_operations=0)
