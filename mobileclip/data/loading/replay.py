"""Replays augmentations: turns an encoded image and stored parameters into pixels, and decodes only the crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mobileclip.data.augmentation.policy import AugmentationParams, AugmentationSpec
from mobileclip.data.images.jpeg import Jpeg, decode_jpeg, read_jpeg
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.metadata import read_orientation
from mobileclip.data.images.resize import Pixels, resized_crop
from mobileclip.data.images.transform import LIMITS
from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError
from mobileclip.inputs import Color, Decode


class SourceImage:
    """An encoded image, with a method that decodes one crop at one or more sizes.

    For most JPEGs, this class reads the image size from the header and decodes only in `replay`, without the rows below
    the crop.

    Args:
        data: the encoded image.
        limits: limits on work and memory.
        orient: whether crops refer to the image after its EXIF rotation: True for newly sampled crops, False for stored
            crops.
        background: colour behind transparent pixels; None drops the alpha channel.

    Raises:
        BadSampleError: if the image exceeds a limit or cannot be decoded; most JPEGs are decoded only in `replay`.
    """

    def __init__(
        self, data: bytes, limits: ImageLimits = LIMITS, *, orient: bool = False, background: Color | None = None
    ) -> None:
        self._limits = limits
        jpeg = read_jpeg(data)
        self._source: Jpeg | Image.Image
        if jpeg is not None and jpeg.is_plain and not (orient and read_orientation(jpeg.exif, jpeg.xmp) != 1):
            try:
                jpeg.check(limits, "the image")
            except ImageError as error:
                raise BadSampleError(f"image_{error.reason}", error.message) from None
            self._source = jpeg
        else:
            self._source = decode_image(data, orient=orient, background=background, limits=limits)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole image, in pixels."""
        return self._source.size

    def replay(
        self, augmentations: Sequence[AugmentationSpec], params: AugmentationParams, decode: Decode = "exact"
    ) -> list[Pixels]:
        """Return the pixels of the augmented image at the size of each augmentation.

        `exact` returns the same pixels as `AugmentationSpec.apply`, bit for bit. `fast` decodes a JPEG at 1/2, 1/4 or
        1/8 of its size, without its high frequencies, if the crop is then at least as large as the largest output.
        `fast` also resizes every image with `resized_crop`. For images decoded at full size, the pixels of `fast` and
        `exact` differ by at most three levels (of 255).

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
            factor = factor if isinstance(self._source, Jpeg) else 1
            image = self._decoded(top + height, factor)
            box = (left / factor, top / factor, width / factor, height / factor)
            crops = [resized_crop(image, box, one.size, one.interpolation) for one in augmentations]
        return [
            np.array(augmentation.operate(crop, params.operations))
            for augmentation, crop in zip(augmentations, crops, strict=True)
        ]

    def _decoded(self, bottom: int, factor: int = 1) -> Image.Image | Pixels:
        jpeg = self._source
        if isinstance(jpeg, Image.Image):
            return jpeg
        data, height = jpeg.above(bottom)
        # If rows are cut off, the JPEG ends in bytes that belong to no row.
        pixels = decode_jpeg(data, (jpeg.width, height), reduce=factor, strict=height == jpeg.height)
        return decode_image(data, orient=False, reduce=factor, limits=self._limits) if pixels is None else pixels


def _cut(image: Image.Image | Pixels, left: int, top: int, right: int, bottom: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))


def _factor(side: int, size: int) -> int:
    """Return the largest reduction (8, 4, 2 or 1) that leaves a crop at least `size` pixels along its shorter side."""
    return next((factor for factor in (8, 4, 2) if side >= factor * size), 1)
