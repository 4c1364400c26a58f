"""What a camera noted beside a picture: which camera it was, when and where. Nothing else of the notes is read."""

from __future__ import annotations

import re
import struct

import attrs

from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.tiff import Tag, read_directory

_MAKE, _MODEL, _CHANGED, _TAKEN = 0x010F, 0x0110, 0x0132, 0x9003
_CAMERA_DIRECTORY, _PLACE_DIRECTORY = 0x8769, 0x8825
_SOUTH_OR_NORTH, _LATITUDE, _WEST_OR_EAST, _LONGITUDE = 1, 2, 3, 4
_TEXT, _LONG, _RATIONAL = 2, 4, 5
_MOST_LETTERS = 100
# Cameras write some dozens.
_LIMITS = ImageLimits(num_parts=1000)
_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)")


@attrs.frozen(kw_only=True)
class CameraNotes:
    """What a camera noted; None stands for what it did not.

    Args:
        camera: maker and model, such as `Apple iPhone 12`.
        taken: when the picture was taken, in the camera's own time, such as `2024-05-01T12:30:00`.
        latitude: in degrees, north of the equator positive.
        longitude: in degrees, east of Greenwich positive.
    """

    camera: str | None = None
    taken: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def read_camera_notes(exif: bytes | None) -> CameraNotes:
    """Return what the notes say; what is missing or damaged is None.

    Args:
        exif: the notes from their byte order on, or with `Exif` in front; None where there are none.

    Source: the Exif standard, 4.6.4 to 4.6.6.
    """
    data = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return CameraNotes()
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
    except struct.error:
        return CameraNotes()
    notes = _Notes(data, order)
    top = notes.directory(start)
    below = notes.directory(notes.number(top.get(_CAMERA_DIRECTORY)))
    place = notes.directory(notes.number(top.get(_PLACE_DIRECTORY)))
    maker, model = notes.text(top.get(_MAKE)), notes.text(top.get(_MODEL))
    # Many models begin with the name of their maker.
    parts = (model,) if model.lower().startswith(maker.lower()) else (maker, model)
    taken = _DATE.fullmatch(notes.text(below.get(_TAKEN)) or notes.text(top.get(_CHANGED)))
    latitude = notes.degrees(place.get(_LATITUDE), place.get(_SOUTH_OR_NORTH), negative="S", most=90)
    longitude = notes.degrees(place.get(_LONGITUDE), place.get(_WEST_OR_EAST), negative="W", most=180)
    is_placed = latitude is not None and longitude is not None
    return CameraNotes(
        camera=" ".join(filter(None, parts)) or None,
        taken=None if taken is None else f"{taken[1]}-{taken[2]}-{taken[3]}T{taken[4]}",
        latitude=latitude if is_placed else None,
        longitude=longitude if is_placed else None,
    )


@attrs.frozen
class _Notes:
    """Encoded notes, of which any part may be damaged."""

    data: bytes
    order: str

    def directory(self, start: int | None) -> dict[int, Tag]:
        if start is None:
            return {}
        try:
            return dict(read_directory(self.data, start, self.order, _LIMITS, "the picture"))
        except (struct.error, OverflowError, ImageError):
            return {}

    def number(self, tag: Tag | None) -> int | None:
        values = self._values(tag, _LONG, "I", 1)
        return int(values[0]) if values else None

    def text(self, tag: Tag | None) -> str:
        if tag is None or tag.kind != _TEXT or not 0 <= tag.start < len(self.data):
            return ""
        stored = self.data[tag.start : tag.start + min(tag.count, _MOST_LETTERS)]
        shown = stored.partition(b"\0")[0].decode("utf-8", "replace")
        return " ".join("".join(letter if letter.isprintable() else " " for letter in shown).split())

    def degrees(self, tag: Tag | None, side: Tag | None, *, negative: str, most: float) -> float | None:
        """Return degrees, minutes and seconds as a number, if it is one that there is on the globe."""
        values = self._values(tag, _RATIONAL, "6I", 3)
        if not values or not all(values[1::2]):
            return None
        degrees, minutes, seconds = (above / below for above, below in zip(values[::2], values[1::2], strict=True))
        total = degrees + minutes / 60 + seconds / 3600
        if total > most:
            return None
        return round(-total if self.text(side).upper() == negative else total, 6)

    def _values(self, tag: Tag | None, kind: int, form: str, count: int) -> tuple[int, ...]:
        if tag is None or tag.kind != kind or tag.count != count:
            return ()
        try:
            return struct.unpack_from(f"{self.order}{form}", self.data, tag.start)
        except (struct.error, OverflowError):
            return ()
