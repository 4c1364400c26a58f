"""What image files of every kind say of themselves before they are decoded, and what a decoder need not see of them.

Metadata is the larger part of what can be attacked, and pixels do not need it: tags that overlap, so that two megabytes
are read as a hundred thousand; comments that are joined one by one; compressed texts and profiles without end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping

import attrs

from mobileclip.data.images.jpeg import bare_jpeg
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.tiff import read_tags


@attrs.frozen(kw_only=True)
class Prepared:
    """An image file as its decoder gets it.

    Args:
        data: the file, without what the pixels do not need where that can be told.
        num_work_bytes: that decoding takes beside the pixels, while it lasts.
        exif: the camera's notes, where they were left out.
        xmp: notes as XML, where they were left out.
    """

    data: bytes
    num_work_bytes: int = 0
    exif: bytes | None = None
    xmp: bytes | None = None


Prepare = Callable[[bytes, ImageLimits, str], Prepared]

_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))
# Texts that may say how a picture is turned; all others are left out.
_PNG_TEXT = re.compile(rb"[tiz](?:TXt|EXt)")
_PNG_NOTES = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = 0x2C, 0x21, 0x3B
_GIF_CONTROL = 0xF9
_GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")

_BMP_PLAIN = frozenset((0, 3))

_EXIF_START = re.compile(rb"II\*\0|MM\0\*")
_MAX_NOTES = 8


def prepare(kind: str, data: bytes, limits: ImageLimits, name: str) -> Prepared:
    """Return an image file as its decoder gets it.

    Args:
        kind: name of its format.
        data: the file.
        limits: of what it is made of.
        name: of the image, for messages.

    Raises:
        ImageError: if it has more parts or scans than the limits allow, contradicts itself, or is encoded in a way that
            is not read.
    """
    try:
        return _PREPARE.get(kind, _as_it_is)(data, limits, name)
    except (IndexError, OverflowError, struct.error):
        raise ImageError("truncated", f"{name} is truncated: it ends within its header; fetch it again") from None


def _as_it_is(data: bytes, _limits: ImageLimits, _name: str) -> Prepared:
    return Prepared(data=data)


def _jpeg(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    bare = bare_jpeg(data, limits, name)
    bare.frame.check(data, limits, name)
    return Prepared(data=bare.data, num_work_bytes=bare.frame.num_work_bytes, exif=bare.exif, xmp=bare.xmp)


def _png(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    kept: list[bytes] = []
    seen: set[bytes] = set()
    begun = position = 8
    num_parts = 0
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IEND" or end > len(data):
            break
        num_parts += 1
        limits.check_parts(num_parts, name)
        if not _needed(kind, data, position + 8, seen):
            kept.append(data[begun:position])
            begun = end
        position = end
    return Prepared(data=b"".join((data[:8], *kept, data[begun:])) if kept else data)


def _needed(kind: bytes, data: bytes, start: int, seen: set[bytes]) -> bool:
    """Return whether a chunk of a PNG decides what the picture looks like; notes do once."""
    mark = kind if kind == b"eXIf" else b""
    if _PNG_TEXT.fullmatch(kind):
        mark = next((note for note in _PNG_NOTES if data.startswith(note, start)), b"")
    elif kind in _PNG_PIXELS and not mark:
        return True
    if not mark or mark in seen:
        return False
    seen.add(mark)
    return True


def _gif(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept = [data[:start]]
    num_parts = 0
    while (found := _GIF_BLOCK.search(data, start)) is not None:
        block = start = found.start()
        if data[block] != _GIF_EXTENSION:
            kept.append(data[block:])
            break
        start += 2
        while data[start]:
            start += data[start] + 1
            num_parts += 1
            limits.check_parts(num_parts, name)
        start += 1
        num_parts += 1
        if data[block + 1] == _GIF_CONTROL:
            kept.append(data[block:start])
    return Prepared(data=b"".join(kept))


def _bmp(data: bytes, _limits: ImageLimits, name: str) -> Prepared:
    header, compression = struct.unpack_from("<I12xI", data, 14)
    if header > 12 and compression not in _BMP_PLAIN:
        # Pillow decodes them in Python, a microsecond a byte.
        raise ImageError("unsupported_format", f"{name} is a run-length BMP; only plain ones are read, so save it anew")
    return Prepared(data=data)


def _tiff(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    return Prepared(data=data, num_work_bytes=read_tags(data, limits, name).check(limits))


def _boxes(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    for number, found in enumerate(_EXIF_START.finditer(data)):
        if number == _MAX_NOTES:
            raise ImageError("corrupt", f"{name} holds more than {_MAX_NOTES} notes of cameras")
        try:
            read_tags(memoryview(data)[found.start() :], limits, name)
        except (IndexError, OverflowError, struct.error):
            continue  # these letters begin no notes
    return Prepared(data=data)


_PREPARE: Mapping[str, Prepare] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "AVIF": _boxes,
    "HEIF": _boxes,
}
