"""Checks an untrusted image file's headers against limits, before any decoder runs on it.

Decoders are written in C and believe headers; Pillow reads metadata in Python, some of it again and again. A stranger
wants one of four things, and none costs more than a few bytes of header:

- another program or an interpreter behind a picture's name: only the formats of `formats.py` are opened, by what they
  begin with, never by what Pillow guesses;
- memory: pixels, tiles, strips, coefficients and what a decoder holds beside them are counted from the header and held
  to `ImageLimits`; what one size promises and another asks for is refused;
- time: scans over all pixels, segments, chunks and tags by the million, runs that are decoded in Python;
- metadata: tags that overlap, so that two megabytes are read as a hundred thousand; comments joined one by one;
  compressed texts and profiles without end. Pixels do not need it: it is left out before a decoder sees the file, all
  but what says how a picture is turned, and where it cannot be left out its tags may claim no more than the file has.

Past the guard a decoder may still fail: `opening.image_error` says what that means. A decoder that can be made to run
code is not guarded against; renew Pillow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import attrs

from mobileclip.data.images.jpeg import bare_jpeg, most_scans
from mobileclip.data.images.limits import ImageError, ImageLimits

Buffer = bytes | memoryview

_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT"))
# What may say how a picture is turned; each is read once.
_PNG_NOTES = re.compile(rb"eXIf|[tiz](?:TXt|EXt)(Raw profile type exif\0|XML:com\.adobe\.xmp\0)")
_GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")
_GIF_EXTENSION, _GIF_CONTROL = 0x21, 0xF9
_BMP_PLAIN = frozenset((0, 3))
_EXIF_START = re.compile(rb"II\*\0|MM\0\*")
_MAX_NOTES = 8

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PER_PIXEL, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LISTS = (273, 279, 324, 325)
_READ = frozenset((*range(_WIDTH, _COMPRESSION + 1), _PER_PIXEL, _ROWS, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, *_LISTS))
_DIRECTORIES = (330, 34665, 34853, 40965)
_MAX_DIRECTORIES = 16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Values that stay bytes; all others become numbers of Python's, of thirty bytes each.
_TEXTS = frozenset((1, 2, 7))
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# None, three of fax machines, LZW, JPEG, deflate by its two numbers, and PackBits. The others are old JPEG, whose
# files nobody reads alike, LZMA, which takes gigabytes for a dictionary, and what is met in laboratories alone.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32773, 32946))
_NONE, _JPEG = 1, 7


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


def prepare(kind: str, data: bytes, limits: ImageLimits, name: str, reduce: int = 1) -> Prepared:
    """Return an image file as its decoder gets it.

    Args:
        kind: name of its format.
        data: the file.
        limits: of what it is made of.
        name: of the image, for messages.
        reduce: part of its size at which a JPEG is decoded.

    Raises:
        ImageError: if it has more parts or scans than the limits allow, contradicts itself, or is encoded in a way that
            is not read.
    """
    try:
        if kind == "JPEG":
            return _jpeg(data, limits, name, reduce)
        return _PREPARE[kind](data, limits, name) if kind in _PREPARE else Prepared(data=data)
    except (IndexError, OverflowError, struct.error):
        raise ImageError("truncated", f"{name} is truncated: it ends within its header; fetch it again") from None


def _jpeg(data: bytes, limits: ImageLimits, name: str, reduce: int) -> Prepared:
    bare = bare_jpeg(data, limits, name)
    bare.frame.check(data, limits, name, reduce)
    return Prepared(data=bare.data, num_work_bytes=bare.frame.num_work_bytes, exif=bare.exif, xmp=bare.xmp)


def _png(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    kept, seen = [data[:8]], set()
    begun = position = 8
    num_parts = 0
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IEND" or end > len(data):
            break
        num_parts += 1
        limits.check_parts(num_parts, name)
        note = _PNG_NOTES.match(data, position + 4)
        text = None if note is None else data[position + 8 : note.end()] or kind
        if kind not in _PNG_PIXELS and (text is None or text in seen):
            kept.append(data[begun:position])
            begun = end
        seen.add(text)
        position = end
    return Prepared(data=b"".join((*kept, data[begun:])) if begun > 8 else data)


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


def _boxes(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    for number, found in enumerate(_EXIF_START.finditer(data)):
        if number == _MAX_NOTES:
            raise ImageError("corrupt", f"{name} holds more than {_MAX_NOTES} notes of cameras")
        try:
            TiffTags(memoryview(data)[found.start() :], limits, name)
        except (IndexError, OverflowError, struct.error):
            continue  # these letters begin no notes
    return Prepared(data=data)


class _Tag(NamedTuple):
    kind: int
    num_values: int
    start: int


class TiffTags:
    """The first directory of a TIFF file, or of notes, which are encoded like one; what its tags claim was checked.

    Args:
        data: the file, from its byte order on.
        limits: of the values in its tags.
        name: of the image, for messages.

    Raises:
        ImageError: if tags claim more than the file holds, because they overlap: each would be read on its own.
        struct.error, IndexError, OverflowError: if the file ends before its tags do.
    """

    def __init__(self, data: Buffer, limits: ImageLimits, name: str) -> None:
        self._data, self._limits, self._name = data, limits, name
        self._order = "<" if data[:2] == b"II" else ">"
        self._is_big = 43 in (data[2], data[3])
        (first,) = self._unpack("Q" if self._is_big else "I", 8 if self._is_big else 4)
        self._tags: dict[int, _Tag] = {}
        waiting = [first]
        num_bytes = num_values = 0
        for start in waiting:
            for number, tag in self._directory(start):
                num_bytes += _SIZES.get(tag.kind, 0) * tag.num_values
                num_values += 0 if tag.kind in _TEXTS else tag.num_values
                limits.check_parts(num_values, name)
                if start == first:
                    if number in _READ and number in self._tags:
                        raise ImageError("corrupt", f"{name} has the tag {number} twice")
                    self._tags[number] = tag
                if number in _DIRECTORIES and tag.kind in _INTEGERS and len(waiting) < _MAX_DIRECTORIES:
                    (below,) = self._unpack(_INTEGERS[tag.kind], tag.start)
                    if below not in waiting and below < len(data):
                        waiting.append(below)
        if num_bytes > 2 * len(data):
            raise ImageError("corrupt", f"{name} has tags that claim {num_bytes:,} bytes; the file has {len(data):,}")

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def numbers(self, tag: int, default: int) -> tuple[int, ...]:
        """Return the first values of a tag, or the default where it is missing.

        Raises:
            ImageError: if they are no whole numbers.
        """
        found = self._tags.get(tag)
        if found is None:
            return (default,)
        if found.kind not in _INTEGERS or not found.num_values:
            raise ImageError("corrupt", f"{self._name} is a TIFF whose tag {tag} holds no whole number")
        return self._unpack(f"{min(found.num_values, 8)}{_INTEGERS[found.kind]}", found.start)

    def check(self) -> int:
        """Return the bytes that decoding takes beside the pixels, for one strip or tile at a time.

        Raises:
            ImageError: if the limits do not allow its size, strips or tiles, or its compression is not read.
        """
        width, height = self.numbers(_WIDTH, 0)[0], self.numbers(_HEIGHT, 0)[0]
        self._limits.check_pixels(width, height, self._name)
        compression = self.numbers(_COMPRESSION, _NONE)[0]
        if compression not in _COMPRESSIONS:
            raise ImageError(
                "unsupported_format",
                f"{self._name} is a TIFF with compression {compression}, which is not read; "
                "save it with LZW or deflate",
            )
        if compression == _JPEG:
            num_strips = max(self._tags[tag].num_values for tag in (*_LISTS, _WIDTH) if tag in self._tags)
            self._limits.check_scans(max(1, most_scans(self._data) - num_strips), width * height, self._name)
        per_pixel = self.numbers(_PER_PIXEL, 1)[0] if self.numbers(_PLANES, 1)[0] == 1 else 1
        num_bytes = max(4, -(-max(self.numbers(_BITS, 1)) * per_pixel // 8))
        if _TILE_WIDTH in self or _TILE_HEIGHT in self:
            across, down = self.numbers(_TILE_WIDTH, 0)[0], self.numbers(_TILE_HEIGHT, 0)[0]
            if not across or not down:
                raise ImageError("corrupt", f"{self._name} is a TIFF whose tiles have no size")
            # Tiles are decoded whole, however little of them is in the picture.
            self._limits.check_pixels(-(-width // across) * across, -(-height // down) * down, self._name)
            return num_bytes * across * down
        return 0 if compression == _NONE else num_bytes * width * min(self.numbers(_ROWS, height)[0], height)

    def _directory(self, start: int) -> list[tuple[int, _Tag]]:
        word, length, first = ("Q", "Q", 8) if self._is_big else ("I", "H", 2)
        width = struct.calcsize(f"={word}")
        (count,) = self._unpack(length, start)
        self._limits.check_parts(count, self._name)
        found = []
        for place in range(start + first, start + first + count * (4 + 2 * width), 4 + 2 * width):
            number, kind, num_values = self._unpack(f"HH{word}", place)
            values = place + 4 + width
            if _SIZES.get(kind, 0) * num_values > width:
                (values,) = self._unpack(word, values)
            found.append((number, _Tag(kind, num_values, values)))
        return found

    def _unpack(self, form: str, place: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + form, self._data, place)


def _tiff(data: bytes, limits: ImageLimits, name: str) -> Prepared:
    return Prepared(data=data, num_work_bytes=TiffTags(data, limits, name).check())


_PREPARE: Mapping[str, Callable[[bytes, ImageLimits, str], Prepared]] = {
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "AVIF": _boxes,
    "HEIF": _boxes,
}
