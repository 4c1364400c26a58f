"""JPEG files: header parsing, removal of metadata and of rows below a crop, and fast decoding.

If simplejpeg is installed (extra `speed`), `decode_jpeg` uses simplejpeg to decode directly into an array. simplejpeg
and Pillow both use libjpeg-turbo and return the same pixels, but Pillow takes longer to fill an array.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cache
from itertools import islice
from types import ModuleType
from typing import Any

import attrs

from mobileclip.data.images.limits import ImageLimits
from mobileclip.data.images.resize import Pixels
from mobileclip.machine import raise_machine_fault

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PLAIN, _PROGRESSIVE = (0xC0, 0xC1, 0xC2), (0xC2, 0xC6, 0xCA, 0xCE)
_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_APP0, _APP1, _APP2, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_METADATA = frozenset(range(_APP0, 0xF0)) | {_COMMENT}
_WITH_LENGTH = _FRAMES | _METADATA | {0xC4, 0xCC} | frozenset(range(0xDA, 0xE0))
# Segments that describe the colour encoding.
_COLOURS = {_APP0: b"JFIF\0", _APP14: b"Adobe"}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_SEVERAL_IMAGES = b"MPF\0"
# Bytes between segments, fill bytes, stuffed bytes and restart markers are skipped, as decoders do.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_BLOCK = 8
# Maximum number of segments before the pixels; encoders write dozens.
_MAX_SEGMENTS = 100_000


@attrs.frozen(kw_only=True)
class Jpeg:
    """A JPEG without its metadata, and the contents of its header.

    Args:
        data: the file without metadata, because Pillow would read all metadata, some of it repeatedly.
        width: width in pixels.
        height: height in pixels.
        height_offset: offset in `data` of the two bytes that hold the height.
        first_scan: offset in `data` of the first scan.
        row_group: number of pixel rows that are encoded together, if a single scan holds the whole image from top to
            bottom; otherwise None.
        is_plain: whether the file holds a single 8-bit image with one or three channels, which simplejpeg decodes to
            the same pixels as Pillow.
        exif: encoded EXIF metadata; None if missing.
        xmp: XMP metadata; None if missing.
    """

    data: bytes
    width: int
    height: int
    height_offset: int
    first_scan: int
    row_group: int | None
    is_plain: bool
    exif: bytes | None
    xmp: bytes | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.width, self.height

    def check(self, limits: ImageLimits, name: str, reduce: int = 1) -> None:
        """Raise unless the limits allow decoding this JPEG at `1 / reduce` of its size.

        Raises:
            ImageError: if the JPEG has more bytes, pixels or scans than the limits allow.
        """
        width, height = (-(-side // reduce) for side in self.size)
        limits.check_file(len(self.data), name)
        limits.check_pixels(width, height, name)
        num_scans = 1 if self.row_group is not None else self._num_scans(limits.num_scans)
        limits.check_scans(num_scans, self.width * self.height, name)

    def above(self, bottom: int) -> tuple[bytes, int]:
        """Return the JPEG cut somewhat below row `bottom`, and the new height; the rows above decode to equal pixels.

        Only the height in the header changes: the encoded rows stay in the file, and a decoder skips them on its way to
        the end marker. A file without the end marker is returned unchanged, so that decoders still detect that the file
        is truncated. A file with several scans is also returned unchanged.

        Args:
            bottom: number of required rows, from the top.
        """
        if self.row_group is None or not self.data.endswith(_END):
            return self.data, self.height
        # Chroma is interpolated between rows, across the border of a row group.
        height = -(-(bottom + self.row_group // 2) // self.row_group) * self.row_group
        if height >= self.height:
            return self.data, self.height
        start = self.height_offset
        return b"".join((self.data[:start], height.to_bytes(2, "big"), self.data[start + 2 :])), height

    def _num_scans(self, most: int) -> int:
        """Count the scans of the first image in the file, and stop counting at `most + 1`."""
        num_scans, position = 0, self.first_scan
        while num_scans <= most and (found := _MARKER.search(self.data, position)) is not None:
            kind, position = found[1][0], found.end()
            if kind == _END_OF_IMAGE:
                break
            num_scans += kind == _SCAN
            if kind in _WITH_LENGTH:
                position += max(2, int.from_bytes(self.data[position : position + 2], "big"))
        return num_scans


def read_jpeg(data: bytes) -> Jpeg | None:
    """Return the parsed header of a JPEG; None if the file is not a JPEG or has no image data."""
    kept: list[bytes] = []
    begun = num_left_out = num_frames = 0
    is_one_image = True
    frame: dict[str, Any] | None = None
    notes: dict[bytes, bytes] = {}
    for kind, start, content, end in islice(_segments(data), _MAX_SEGMENTS):
        if kind == _SCAN and frame is not None:
            num_components = frame.pop("num_components")
            if data[content : content + 1] != bytes((num_components,)):
                frame["row_group"] = None
            return Jpeg(
                **frame | {"is_plain": frame["is_plain"] and num_frames == 1 and is_one_image},
                data=b"".join((*kept, data[begun:])) if kept else data,
                first_scan=start - num_left_out,
                exif=notes.get(_EXIF),
                xmp=notes.get(_XMP),
            )
        if kind in _FRAMES:
            num_frames += 1
            frame = _frame(kind, data[content:end])
            if frame is not None:
                frame["height_offset"] = content + 1 - num_left_out
        elif kind in _METADATA and not (kind in _COLOURS and data.startswith(_COLOURS[kind], content)):
            for mark in (_EXIF, _XMP) if kind == _APP1 else ():
                if data.startswith(mark, content):
                    notes.setdefault(mark, data[content + len(mark) : end])
            is_one_image &= not (kind == _APP2 and data.startswith(_SEVERAL_IMAGES, content))
            kept.append(data[begun:start])
            num_left_out += end - start
            begun = end
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the kind, start, start of the content and end of every segment before the first malformed segment."""
    position = 2 if data.startswith(_START) else len(data)
    while (found := _MARKER.search(data, position)) is not None:
        kind, content = found[1][0], found.end() + 2
        length = int.from_bytes(data[content - 2 : content], "big")
        if kind not in _WITH_LENGTH or content > len(data):
            return
        position = content - 2 + max(2, length)
        yield kind, found.start(), content, position


def _frame(kind: int, content: bytes) -> dict[str, Any] | None:
    """Return the contents of a frame header; None if the header is inconsistent."""
    if len(content) < 9 or len(content) != 6 + 3 * content[5]:
        return None
    height, width, num_components = struct.unpack_from(">HHB", content, 1)
    factors = [divmod(factor, 16) for factor in content[7::3]]
    if height == 0 or width == 0 or not all(1 <= factor <= 4 for pair in factors for factor in pair):
        return None
    # A single component is never interleaved: its blocks come row by row, whatever its sampling factor.
    row_group = _BLOCK * (max(down for _, down in factors) if num_components > 1 else 1)
    return {
        "width": width,
        "height": height,
        "num_components": num_components,
        "row_group": None if kind in _PROGRESSIVE else row_group,
        "is_plain": kind in _PLAIN and content[0] == 8 and num_components in (1, 3),
    }


def decode_jpeg(data: bytes, size: tuple[int, int], *, reduce: int, strict: bool) -> Pixels | None:
    """Return the pixels of a JPEG; None if the file is damaged or simplejpeg is missing, so that Pillow must decode.

    Shape: (height, width, 3), uint8.

    Args:
        data: JPEG file with one or three channels.
        size: width and height of the JPEG, in pixels.
        reduce: 1, 2, 4 or 8 to decode the JPEG at 1 / `reduce` of its size, rounded up.
        strict: whether to treat bytes that belong to no row as damage.
    """
    library = _library()
    if library is None:
        return None
    width, height = (-(-side // reduce) for side in size)
    try:
        pixels: Pixels = library.decode_jpeg(data, "RGB", min_width=width, min_height=height, strict=strict)
    except Exception as error:  # noqa: BLE001  Pillow reports the problem
        raise_machine_fault(error)
        return None
    return pixels if pixels.shape == (height, width, 3) else None


@cache
def _library() -> ModuleType | None:
    try:
        import simplejpeg as library
    except ImportError:
        return None
    found: ModuleType = library
    return found
