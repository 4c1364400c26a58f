"""The EXIF orientation of an image; no other tag is read."""

from __future__ import annotations

import re
import struct

import attrs
from PIL import Image

from mobileclip.data.images.resize import Centre, Pixels

ORIENTATION = 0x0112
"""The tag of the notes that says it."""

_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same, as what is done to the axes of an array, in this order: exchanged, and reversed.
_ON_ITS_SIDE, _UPSIDE_DOWN, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8; 1, which turns nothing, where it is not said or cannot be read.

    Args:
        exif: the camera's notes, from their byte order on, or with `Exif` in front.
        xmp: notes as XML, which count where the camera says nothing.

    Source: the Exif standard, 4.6.4; TIFF 6.0, section 2.
    """
    found = None
    if exif:
        try:
            found = _from_exif(exif.removeprefix(b"Exif\0\0"))
        except (struct.error, OverflowError):
            found = None
    if found is None and xmp:
        match = _XMP.search(xmp)
        found = None if match is None else int(match[1])
    return found if found in _TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image upright."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def turned_pixels(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels of an image upright: the same memory, read in another order.

    Shape: (height, width, channels) -> the same, or (width, height, channels).
    """
    found = pixels.swapaxes(0, 1) if orientation in _ON_ITS_SIDE else pixels
    found = found[::-1] if orientation in _UPSIDE_DOWN else found
    return found[:, ::-1] if orientation in _MIRRORED else found


def is_on_its_side(orientation: int) -> bool:
    """Return whether width and height of the upright image are the other way round."""
    return orientation in _ON_ITS_SIDE


def centre_before(centre: Centre, orientation: int) -> Centre:
    """Return where the centre of an upright image is before it is turned."""
    left = centre.width - centre.side - centre.left if orientation in _MIRRORED else centre.left
    top = centre.height - centre.side - centre.top if orientation in _UPSIDE_DOWN else centre.top
    found = attrs.evolve(centre, left=left, top=top)
    if not is_on_its_side(orientation):
        return found
    return attrs.evolve(found, width=found.height, height=found.width, left=top, top=left)


def _from_exif(exif: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, num_values = struct.unpack_from(f"{order}HHI", exif, place)
        if tag == ORIENTATION and num_values == 1 and kind in _INTEGERS:
            return int(struct.unpack_from(f"{order}{_INTEGERS[kind]}", exif, place + 8)[0])
    return None
