"""From an encoded image to augmented ones, decoding no more than the augmentation looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mobileclip.data.augmentation.replay import AugmentationParams, AugmentationSpec
from mobileclip.data.images.jpeg import bare_jpeg, cut_below, read_frame
from mobileclip.data.images.orientation import read_orientation
from mobileclip.data.images.resize import Pixels, resized_crop
from mobileclip.data.images.transform import LIMITS, ImageError, ImageLimits
from mobileclip.data.images.turbojpeg import decode_jpeg
from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError
from mobileclip.inputs import Color, Decode


class SourceImage:
    """An encoded image of which one crop is wanted, at one size or several.

    Where the file allows it, the size is read from its header, and decoding waits until the crop is known: the rows
    below it are left out.

    Args:
        data: the encoded image.
        limits: of the work and memory that it may cost.
        orient: whether crops are of the upright image, as those that are sampled afresh; stored ones are not.
        background: see `decode_image`.

    Raises:
        BadSampleError: as `decode_image` does, here or when it is replayed.
    """

    def __init__(
        self, data: bytes, limits: ImageLimits = LIMITS, *, orient: bool = False, background: Color | None = None
    ) -> None:
        self._data = data
        self._limits = limits
        self._frame = read_frame(data, limits.num_parts)
        try:
            if self._frame is not None:
                self._frame.check(data, limits, "the image")
                if orient and _is_turned(data, limits):
                    self._frame = None
        except ImageError as error:
            raise BadSampleError(f"image_{error.reason}", error.message) from None
        self._image = (
            decode_image(data, orient=orient, background=background, limits=limits) if self._frame is None else None
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole image, in pixels."""
        if self._frame is not None:
            return self._frame.size
        return self._whole.size

    def replay(
        self, augmentations: Sequence[AugmentationSpec], params: AugmentationParams, decode: Decode = "exact"
    ) -> list[Pixels]:
        """Return the pixels of the augmented image at the size of each augmentation.

        `exact` gives those of `AugmentationSpec.apply`, to the bit. `fast` decodes a JPEG at a half, a quarter or an
        eighth, by leaving out its high frequencies, where the crop then still has as many pixels as the largest output,
        and resizes any image by `resized_crop`, which is within three levels of 255 where nothing was left out.

        Shape: (size, size, 3) each, uint8.

        Raises:
            BadSampleError: if the image cannot be decoded.
        """
        top, left, height, width = params.crop
        if decode == "exact":
            cut = _cut(self._decoded(top + height), left, top, left + width, top + height)
            crops = [augmentation.resize(cut) for augmentation in augmentations]
        else:
            factor = _factor(min(height, width), max(augmentation.size for augmentation in augmentations))
            factor = 1 if self._frame is None else factor
            image = self._decoded(top + height, factor)
            box = (left / factor, top / factor, width / factor, height / factor)
            crops = [resized_crop(image, box, one.size, one.interpolation) for one in augmentations]
        return [
            np.array(augmentation.operate(crop, params.operations))
            for augmentation, crop in zip(augmentations, crops, strict=True)
        ]

    @property
    def _whole(self) -> Image.Image:
        assert self._image is not None, "what cannot wait was decoded at once"
        return self._image

    def _decoded(self, bottom: int, factor: int = 1) -> Image.Image | Pixels:
        if self._frame is None:
            return self._whole
        data, height = cut_below(self._data, self._frame, bottom)
        # What is cut ends in bytes that belong to no row.
        pixels = decode_jpeg(data, (self._frame.width, height), reduce=factor, strict=height == self._frame.height)
        if pixels is None:
            return decode_image(data, orient=False, reduce=factor, limits=self._limits)
        return pixels


def _is_turned(data: bytes, limits: ImageLimits) -> bool:
    bare = bare_jpeg(data, limits, "the image")
    return read_orientation(bare.exif, bare.xmp) != 1


def _cut(image: Image.Image | Pixels, left: int, top: int, right: int, bottom: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))


def _factor(side: int, size: int) -> int:
    """Return by how much a crop may be reduced and still have `size` pixels along its shorter side."""
    return next((factor for factor in (8, 4, 2) if side >= factor * size), 1)
