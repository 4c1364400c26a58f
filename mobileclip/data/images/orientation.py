"""How a picture is turned, as its notes say; only that one tag of them is read."""

from __future__ import annotations

import re
import struct

from PIL import Image

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
