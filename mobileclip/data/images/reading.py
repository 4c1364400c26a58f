"""An image file read once: the part that a tower sees, decoded no larger than it needs, its size, and its notes."""

from __future__ import annotations

import attrs
import numpy as np
from PIL import Image

from mobileclip.data.images.jpeg import JpegFrame, bare_jpeg, cut_below, read_frame
from mobileclip.data.images.opening import open_image, read_image_file
from mobileclip.data.images.orientation import (
    centre_before,
    is_on_its_side,
    read_orientation,
    turned,
    turned_pixels,
)
from mobileclip.data.images.raw import raw_preview
from mobileclip.data.images.resize import Pixels, resize_centre, resize_reduced_centre
from mobileclip.data.images.transform import (
    LIMITS,
    ImageLimits,
    ImageSource,
    ImageTransform,
    load_image,
    name_of,
)
from mobileclip.data.images.turbojpeg import decode_jpeg
from mobileclip.inputs import DECODES, Decode

_REDUCTIONS = (8, 4, 2)


@attrs.frozen(kw_only=True, eq=False)
class TowerImage:
    """An image file as an image tower takes it: its pixels, original size and metadata.

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
    data: bytes,
    transform: ImageTransform,
    *,
    reduced: bool = False,
    name: str,
    limits: ImageLimits = LIMITS,
) -> TowerImage:
    """Return an image file as a tower's input, with its metadata.

    Args:
        data: the file.
        transform: to the tower's input.
        reduced: whether a JPEG is decoded at a half, a quarter or an eighth where it still has as many pixels as the
            tower takes: it costs a fraction of the time, and embeddings differ in the third digit. Without, the pixels
            are those of `ImageTransform.pixels`, to the bit, unless the JPEG has more pixels than the limits allow.
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
    opened = open_image(data, limits, name, reduce=_REDUCTIONS[0])
    reduce = _reduction(opened.image.size, limits) if opened.kind.name == "JPEG" else 1
    image = load_image(data, background=transform.image_input.background_color, reduce=reduce, limits=limits, name=name)
    stored = opened.image.size[::-1] if is_on_its_side(opened.orientation) else opened.image.size
    width, height = image.size if reduce == 1 else stored
    return TowerImage(pixels=transform.pixels(image, name=name), width=width, height=height, exif=opened.exif)


def require_decode(decode: str) -> Decode:
    """Return the decoding mode, checked.

    Raises:
        ValueError: if it is no way that there is.
    """
    for one in DECODES:
        if one == decode:
            return one
    raise ValueError(f"decode is {decode!r}, expected one of {', '.join(DECODES)}")


def read_pixels(
    source: ImageSource,
    transform: ImageTransform,
    *,
    reduced: bool = False,
    name: str | None = None,
) -> Pixels:
    """Return what a tower sees of any image, see `read_tower_image`; images that are decoded are taken as they are.

    Shape: an image -> (size, size, 3), uint8.

    Args:
        source: see `load_image`.
        transform: to the tower's input.
        reduced: see `read_tower_image`.
        name: of the image, for messages; by default what it says itself.

    Raises:
        ImageError: if it cannot be read, or has no pixels or an extreme shape.
    """
    name = name or name_of(source)
    if isinstance(source, (Image.Image, np.ndarray)):
        return transform.pixels(source, name=name)
    data = read_image_file(source, LIMITS, name)
    return read_tower_image(data, transform, reduced=reduced, name=name).pixels


def _reduction(size: tuple[int, int], limits: ImageLimits) -> int:
    """Return the part of its size at which a JPEG is within the limit of pixels: 1 if it is, 8 at most."""
    width, height = size
    fitting = (one for one in (1, *reversed(_REDUCTIONS)) if -(-width // one) * -(-height // one) <= limits.num_pixels)
    return next(fitting, _REDUCTIONS[0])


def _read_jpeg(
    data: bytes,
    frame: JpegFrame,
    transform: ImageTransform,
    *,
    reduced: bool,
    name: str,
    limits: ImageLimits,
) -> TowerImage:
    bare = bare_jpeg(data, limits, name)
    orientation = read_orientation(bare.exif, bare.xmp)
    width, height = frame.size[::-1] if is_on_its_side(orientation) else frame.size
    centre, contract = transform.centre((width, height), name), transform.image_input
    reduce = next((one for one in _REDUCTIONS if reduced and min(frame.size) >= one * contract.size), 1)
    reduce = max(reduce, _reduction(frame.size, limits))
    frame.check(data, limits, name, reduce)
    kept, rows = bare.data, frame.height
    if orientation == 1:
        # Reduced rows reach further.
        cut, rows = cut_below(data, frame, centre.rows(frame.size, contract.interpolation)[1] + _REDUCTIONS[0])
        kept = kept if rows == frame.height else cut
    # What is cut ends in bytes that belong to no row.
    pixels = decode_jpeg(kept, (frame.width, rows), reduce=reduce, strict=rows == frame.height)
    image = load_image(data, orient=False, reduce=reduce, limits=limits, name=name) if pixels is None else pixels
    if reduce > 1:
        part = (frame.width / reduce, frame.height / reduce)
        stored = resize_reduced_centre(image, part, centre_before(centre, orientation), contract.interpolation)
        seen = np.ascontiguousarray(turned_pixels(stored, orientation))
    else:
        upright = turned(image, orientation) if isinstance(image, Image.Image) else turned_pixels(image, orientation)
        seen = resize_centre(upright, height, centre, contract.interpolation)
    return TowerImage(pixels=seen, width=width, height=height, exif=bare.exif)
