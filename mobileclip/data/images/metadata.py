"""Image metadata: orientation, camera, time and GPS position."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs
from PIL import ExifTags, Image

from mobileclip.data.images.resize import Centre, Pixels

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Size of one tag value in bytes, by TIFF type number."""
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
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
# The same operations on the axes of an array: first swap the axes, then reverse them.
_ON_ITS_SIDE, _UPSIDE_DOWN, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if the metadata is missing or unreadable.

    Args:
        exif: EXIF data, with or without the prefix `Exif`.
        xmp: XMP data, used if the EXIF data has no orientation.

    Source: the Exif standard, 4.6.4; TIFF 6.0, section 2.
    """
    found: int | None = None
    notes = (exif or b"").removeprefix(b"Exif\0\0")
    with suppress(struct.error, OverflowError):
        for number, kind, num_values, place in tiff_tags(notes):
            if number == ORIENTATION and num_values == 1 and found is None:
                found = whole_number(notes, kind, place)
    if found is None and xmp:
        match = _XMP.search(xmp)
        found = None if match is None else int(match[1])
    return found if found in _TURNS else 1


def exif_transpose(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate or mirror an image upright by its EXIF orientation."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def transpose_pixels(pixels: Pixels, orientation: int) -> Pixels:
    """Return an upright view of an image's pixels, without copying.

    Shape: (height, width, channels) -> (height, width, channels) or (width, height, channels).
    """
    found = pixels.swapaxes(0, 1) if orientation in _ON_ITS_SIDE else pixels
    found = found[::-1] if orientation in _UPSIDE_DOWN else found
    return found[:, ::-1] if orientation in _MIRRORED else found


def is_on_its_side(orientation: int) -> bool:
    """Return whether the orientation swaps width and height."""
    return orientation in _ON_ITS_SIDE


def stored_crop_box(centre: Centre, orientation: int) -> Centre:
    """Return the central square of an upright image in the coordinates of the stored image."""
    left = centre.width - centre.side - centre.left if orientation in _MIRRORED else centre.left
    top = centre.height - centre.side - centre.top if orientation in _UPSIDE_DOWN else centre.top
    found = attrs.evolve(centre, left=left, top=top)
    if not is_on_its_side(orientation):
        return found
    return attrs.evolve(found, width=found.height, height=found.width, left=top, top=left)


def tiff_tags(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number, type, count and value offset of every tag in a TIFF file's first directory.

    EXIF data is encoded like a TIFF file.

    Args:
        data: a TIFF file, or EXIF data without the prefix `Exif`; other data yields nothing.

    Raises:
        struct.error, OverflowError: if the file is truncated.

    Source: TIFF 6.0, section 2; BigTIFF.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    word, length, start = ("Q", "Q", 8) if 43 in data[2:4] else ("I", "H", 4)
    (place,) = struct.unpack_from(order + word, data, start)
    (count,) = struct.unpack_from(order + length, data, place)
    place += struct.calcsize("=" + length)
    entry, width = struct.Struct(f"{order}HH{word}"), struct.calcsize("=" + word)
    for start in range(place, place + count * (entry.size + width), entry.size + width):
        number, kind, num_values = entry.unpack_from(data, start)
        values = start + entry.size
        if TAG_BYTES.get(kind, 0) * num_values > width:
            (values,) = struct.unpack_from(order + word, data, values)
        yield number, kind, num_values, values


def whole_number(data: bytes, kind: int, place: int) -> int | None:
    """Return the integer at offset `place` of `data`; None if the TIFF type `kind` is not an integer type."""
    order = "<" if data[:2] == b"II" else ">"
    return int(struct.unpack_from(order + _INTEGERS[kind], data, place)[0]) if kind in _INTEGERS else None


# Numbers of the subdirectories and of tags; `Base` has the tags of the main directory and of the `Exif` subdirectory.
_CAMERA, _PLACE = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo
_TAG, _PLACE_TAG = ExifTags.Base, ExifTags.GPS
# Cameras write a few dozen kilobytes and a thumbnail.
_MOST_BYTES, _MOST_LETTERS = 2**18, 100
_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)")


@attrs.frozen(kw_only=True)
class CameraMetadata:
    """Camera metadata of an image; missing values are None.

    Args:
        camera: maker and model, such as `Apple iPhone 12`.
        taken: time of the photo in the camera's local time, such as `2024-05-01T12:30:00`.
        latitude: latitude in degrees, positive north of the equator.
        longitude: longitude in degrees, positive east of Greenwich.
    """

    camera: str | None = None
    taken: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def read_camera_metadata(exif: bytes | None) -> CameraMetadata:
    """Parse camera metadata; missing and damaged values are None, and so are all values if `exif` exceeds 256 KiB.

    Args:
        exif: EXIF data, with or without the prefix `Exif`; None if missing.

    Source: the Exif standard, 4.6.4 to 4.6.6.
    """
    data = (exif or b"").removeprefix(b"Exif\0\0")
    if not data.startswith((b"II", b"MM")) or len(data) > _MOST_BYTES:
        return CameraMetadata()
    notes = Image.Exif()
    with warnings.catch_warnings():
        # Pillow warns about damaged metadata.
        warnings.simplefilter("ignore")
        try:
            notes.load_from_fp(_Bounded(data))
            top = dict(notes)
        except Exception:  # noqa: BLE001  Pillow may raise any exception on broken bytes
            return CameraMetadata()
        below, place = _directory(notes, _CAMERA), _directory(notes, _PLACE)
    maker, model = _text(top.get(_TAG.Make)), _text(top.get(_TAG.Model))
    # Many models begin with the name of their maker.
    parts = (model,) if model.lower().startswith(maker.lower()) else (maker, model)
    taken = _DATE.fullmatch(_text(below.get(_TAG.DateTimeOriginal)) or _text(top.get(_TAG.DateTime)))
    latitude = _degrees(place, _PLACE_TAG.GPSLatitude, _PLACE_TAG.GPSLatitudeRef, negative="S", most=90)
    longitude = _degrees(place, _PLACE_TAG.GPSLongitude, _PLACE_TAG.GPSLongitudeRef, negative="W", most=180)
    is_placed = latitude is not None and longitude is not None
    return CameraMetadata(
        camera=" ".join(filter(None, parts)) or None,
        taken=None if taken is None else f"{taken[1]}-{taken[2]}-{taken[3]}T{taken[4]}",
        latitude=latitude if is_placed else None,
        longitude=longitude if is_placed else None,
    )


class _Bounded(io.BytesIO):
    """EXIF data as a stream that raises after reads of twice the size: Pillow reads overlapping tags repeatedly."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = 2 * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._left -= len(found)
        if self._left < 0:
            raise OSError("tags overlap")
        return found


def _directory(notes: Image.Exif, number: int) -> Mapping[int, Any]:
    try:
        return notes.get_ifd(number)
    except Exception:  # noqa: BLE001  Pillow may raise any exception on broken bytes
        return {}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    stored = value.partition("\0")[0][:_MOST_LETTERS].encode("latin-1", "replace").decode("utf-8", "replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in stored).split())


def _degrees(place: Mapping[int, Any], number: int, side: int, *, negative: str, most: float) -> float | None:
    """Convert degrees, minutes and seconds to a number; return None outside the valid range."""
    try:
        degrees, minutes, seconds = map(float, place[number])
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None
    total = degrees + minutes / 60 + seconds / 3600
    if not 0 <= total <= most:
        return None
    return round(-total if _text(place.get(side)).upper() == negative else total, 6)
