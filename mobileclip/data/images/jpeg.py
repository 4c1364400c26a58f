"""JPEGs: read by their headers before they are decoded, copied without metadata or rows below a crop, decoded fast.

simplejpeg decodes them straight into an array, where it is installed (extra speed). Both it and Pillow decode by
libjpeg-turbo, to the same pixels; Pillow's way into an array is longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from types import ModuleType

import attrs
import numpy as np

from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.resize import Pixels
from mobileclip.machine import raise_machine_fault

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2, 0xC6, 0xCA, 0xCE)
_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_SCAN_MARK = int.from_bytes(b"\xff\xda", "little")
_APP0, _APP1, _APP2, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_METADATA = frozenset(range(_APP0, 0xF0)) | {_COMMENT}
_WITH_LENGTH = _FRAMES | _METADATA | {0xC4, 0xCC} | frozenset(range(0xDA, 0xE0))
# What says how colours are encoded.
_COLOURS = {_APP0: b"JFIF\0", _APP14: b"Adobe"}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_SEVERAL_PICTURES = b"MPF\0"
# Bytes between segments, fill bytes, stuffed ones and restarts are passed over, as decoders do.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_BLOCK = 8


@attrs.frozen(kw_only=True)
class JpegFrame:
    """The frame header of a JPEG: size, components, and how they are encoded.

    Args:
        width: in pixels.
        height: in pixels.
        height_offset: of the two bytes in the file that hold the height.
        num_components: 1 for grey, 3 for colours, 4 for those of a printer.
        row_group: rows of pixels that are encoded together, where all comes in one scan from top to bottom; else None.
        first_scan: where in the file the first scan begins.
    """

    width: int
    height: int
    height_offset: int
    num_components: int
    row_group: int | None
    first_scan: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.width, self.height

    def check(self, data: bytes, limits: ImageLimits, name: str, reduce: int = 1) -> None:
        """Raise unless this JPEG, whose bytes are `data`, may be decoded, at so small a part of its size.

        Raises:
            ImageError: if it has more pixels or scans than the limits allow.
        """
        width, height = (-(-side // reduce) for side in self.size)
        limits.check_file(len(data), name)
        limits.check_pixels(width, height, name)
        num_scans = 1 if self.row_group is not None else _num_scans(data, self, limits, name)
        limits.check_scans(num_scans, self.width * self.height, name)


@attrs.frozen(kw_only=True)
class BareJpeg:
    """A JPEG without its metadata.

    Args:
        data: what a decoder needs.
        frame: what it says of its pixels.
        exif: the camera's notes, as they are encoded.
        xmp: notes as XML.
    """

    data: bytes
    frame: JpegFrame
    exif: bytes | None
    xmp: bytes | None


def read_frame(data: bytes, max_segments: int = 100_000) -> JpegFrame | None:
    """Return the frame of a JPEG of 8 bits, grey or of three colours; None of anything else, or of several pictures.

    Args:
        data: the file.
        max_segments: None is returned of a file that has more in front of its pixels.
    """
    frame: JpegFrame | None = None
    for kind, start, content, end in islice(_segments(data), max_segments):
        if kind == _SCAN:
            return None if frame is None else _with_scan(frame, data, start, content)
        if kind in _FRAMES:
            if (
                frame is not None
                or kind not in (*_SEQUENTIAL, _PROGRESSIVE[0])
                or data[content : content + 1] != b"\x08"
            ):
                return None
            frame = _frame(kind, data[content:end], content)
            if frame is None or frame.num_components not in (1, 3):
                return None
        elif kind == _APP2 and data.startswith(_SEVERAL_PICTURES, content):
            return None
    return None


def bare_jpeg(data: bytes, limits: ImageLimits, name: str) -> BareJpeg:
    """Return a JPEG without its metadata: Pillow reads all of it, some of it again and again.

    Args:
        data: the file.
        limits: of its segments.
        name: of the image, for messages.

    Raises:
        ImageError: if there are more segments than the limits allow, or no pixels.
    """
    kept: list[bytes] = []
    begun = 0
    frame: JpegFrame | None = None
    notes: dict[bytes, bytes] = {}
    for number, (kind, start, content, end) in enumerate(_segments(data)):
        limits.check_parts(number, name)
        if kind == _SCAN and frame is not None:
            return BareJpeg(
                data=b"".join((*kept, data[begun:])) if kept else data,
                frame=_with_scan(frame, data, start, content),
                exif=notes.get(_EXIF),
                xmp=notes.get(_XMP),
            )
        if kind in _FRAMES:
            frame = _frame(kind, data[content:end], content)
        elif kind in _METADATA and not (kind in _COLOURS and data.startswith(_COLOURS[kind], content)):
            for mark in (_EXIF, _XMP) if kind == _APP1 else ():
                if data.startswith(mark, content):
                    notes.setdefault(mark, data[content + len(mark) : end])
            kept.append(data[begun:start])
            begun = end
    raise ImageError("truncated", f"{name} is truncated, or no JPEG: there are no pixels in it; fetch it again")


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield kind, start, start of the content and end of every segment, as far as they are well-formed."""
    position = 2 if data.startswith(_START) else len(data)
    while (found := _MARKER.search(data, position)) is not None:
        kind, content = found[1][0], found.end() + 2
        length = int.from_bytes(data[content - 2 : content], "big")
        if kind not in _WITH_LENGTH or content > len(data):
            return
        position = content - 2 + max(2, length)
        yield kind, found.start(), content, position


def _frame(kind: int, content: bytes, offset: int) -> JpegFrame | None:
    if len(content) < 9 or len(content) != 6 + 3 * content[5]:
        return None
    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    factors = [divmod(factor, 16) for factor in content[7::3]]
    if height == 0 or width == 0 or not all(1 <= factor <= 4 for pair in factors for factor in pair):
        return None
    down = max(down for _, down in factors)
    return JpegFrame(
        width=width,
        height=height,
        height_offset=offset + 1,
        num_components=len(factors),
        # A single component is never interleaved: its blocks come row by row whatever its factor says.
        row_group=None if kind in _PROGRESSIVE else _BLOCK * (down if len(factors) > 1 else 1),
    )


def _with_scan(frame: JpegFrame, data: bytes, start: int, content: int) -> JpegFrame:
    whole = frame.row_group is not None and data[content : content + 1] == bytes((frame.num_components,))
    return attrs.evolve(frame, first_scan=start, row_group=frame.row_group if whole else None)


def most_scans(data: bytes | memoryview, start: int = 0) -> int:
    """Return an upper bound of the number of scans: how often their marker occurs from `start` on."""
    pairs = (np.frombuffer(data, "<u2", (len(data) - first) // 2, first) for first in (start, start + 1))
    return sum(int(np.count_nonzero(pair == _SCAN_MARK)) for pair in pairs)


def _num_scans(data: bytes, frame: JpegFrame, limits: ImageLimits, name: str) -> int:
    """Return the number of scans, or one that is larger and still allowed."""
    most = most_scans(data, frame.first_scan)
    if most <= limits.num_scans and most * frame.width * frame.height <= limits.num_scan_pixels:
        return most
    # There may be other pictures behind this one, or marks of scans in what belongs to no pixel.
    num_scans, num_markers, position = 0, 0, frame.first_scan
    while (found := _MARKER.search(data, position)) is not None and found[1][0] != _END_OF_IMAGE:
        num_markers += 1
        limits.check_parts(num_markers, name)
        position = found.end()
        num_scans += found[1][0] == _SCAN
        if found[1][0] in _WITH_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return num_scans


def cut_below(data: bytes, frame: JpegFrame, bottom: int) -> tuple[bytes, int]:
    """Return the JPEG without the rows far below `bottom`, and its height; those above decode to the same pixels.

    The encoded rows stay where they are, and a decoder passes over them on its way to the end mark. A file that lacks
    the mark is returned as it is, so that a truncated one is still found to be truncated; so is one of several scans.

    Args:
        data: the file.
        frame: what `read_frame` said of it.
        bottom: number of rows that are needed.
    """
    if frame.row_group is None or not data.endswith(_END):
        return data, frame.height
    # Chroma is interpolated between rows, across the edge of a group.
    height = -(-(bottom + frame.row_group // 2) // frame.row_group) * frame.row_group
    if height >= frame.height:
        return data, frame.height
    start = frame.height_offset
    return b"".join((data[:start], height.to_bytes(2, "big"), data[start + 2 :])), height


def decode_jpeg(data: bytes, size: tuple[int, int], *, reduce: int, strict: bool) -> Pixels | None:
    """Return the pixels of a JPEG, or None where Pillow has to look at it: it is damaged, or simplejpeg is missing.

    Shape: (height, width, 3), uint8.

    Args:
        data: a JPEG, grey or of three colours.
        size: its width and height, in pixels.
        reduce: 1, or 2, 4 or 8 to decode it at that part of its size, rounded up.
        strict: whether bytes that belong to no row are damage.
    """
    library = _library()
    if library is None:
        return None
    width, height = (-(-side // reduce) for side in size)
    try:
        pixels: Pixels = library.decode_jpeg(data, "RGB", min_width=width, min_height=height, strict=strict)
    except Exception as error:  # noqa: BLE001  Pillow says what is wrong with it
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
