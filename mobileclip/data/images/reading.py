"""An image file read once: the part that a tower sees, decoded no larger than it needs, its size, and its notes."""

from __future__ import annotations

import attrs
from PIL import Image

from mobileclip.data.images.jpeg import JpegFrame, bare_jpeg, read_frame
from mobileclip.data.images.opening import open_image
from mobileclip.data.images.orientation import read_orientation, turned
from mobileclip.data.images.raw import raw_preview
from mobileclip.data.images.transform import LIMITS, ImageLimits, ImageTransform, Pixels, load_image
from mobileclip.data.images.turbojpeg import decode_jpeg

_REDUCTIONS = (8, 4, 2)
_ON_ITS_SIDE = 5


@attrs.frozen(kw_only=True, eq=False)
class TowerImage:
    """What was read of an image file.

    Shape:
        pixels: `(size, size, 3)`, uint8.

    Args:
        pixels: what the tower sees.
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        exif: the camera's notes, as they are encoded.
    """

    pixels: Pixels
    width: int
    height: int
    exif: bytes | None


def read_tower_image(
    data: bytes, transform: ImageTransform, *, reduced: bool = False, name: str, limits: ImageLimits = LIMITS
) -> TowerImage:
    """Return an image file as a tower's input, with its metadata.

    Args:
        data: the file.
        transform: to the tower's input.
        reduced: whether a JPEG is decoded at a half, a quarter or an eighth where it still has as many pixels as the
            tower takes: it costs a fraction of the time, and embeddings differ in the third digit. Without, the pixels
            are those of `ImageTransform.pixels`, to the bit.
        name: of the image, for messages.
        limits: of the work and memory that it may cost.

    Raises:
        ImageError: if it cannot be read, or is out of all shape.
    """
    preview = raw_preview(data, limits, name)
    data = data if preview is None else preview
    frame = read_frame(data, limits.num_parts)
    if frame is not None:
        return _read_jpeg(data, frame, transform, reduced=reduced, name=name, limits=limits)
    image = load_image(data, background=transform.image_input.background_color, limits=limits, name=name)
    exif = open_image(data, limits, name).exif
    return TowerImage(pixels=transform.pixels(image, name=name), width=image.width, height=image.height, exif=exif)


def _read_jpeg(
    data: bytes, frame: JpegFrame, transform: ImageTransform, *, reduced: bool, name: str, limits: ImageLimits
) -> TowerImage:
    frame.check(data, limits, name)
    bare = bare_jpeg(data, limits, name)
    size = transform.image_input.size
    reduce = next((one for one in _REDUCTIONS if reduced and min(frame.size) >= one * size), 1)
    pixels = decode_jpeg(bare.data, frame.size, reduce=reduce, strict=True)
    if pixels is None:
        image = load_image(data, orient=False, reduce=reduce, limits=limits, name=name)
    else:
        image = Image.fromarray(pixels)
    if reduce > 1:
        image = transform.resize_reduced(image, frame.size, reduce=reduce, name=name)
    orientation = read_orientation(bare.exif, bare.xmp)
    width, height = frame.size if orientation < _ON_ITS_SIDE else frame.size[::-1]
    return TowerImage(
        pixels=transform.pixels(turned(image, orientation), name=name), width=width, height=height, exif=bare.exif
    )
