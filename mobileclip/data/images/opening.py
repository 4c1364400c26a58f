"""Opens image files, the only place that does: a few formats, within limits, without their metadata.

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

import io
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import attrs
import numpy as np
from PIL import Image, UnidentifiedImageError, features

from mobileclip import storage
from mobileclip.data.images.jpeg import bare_jpeg, most_scans
from mobileclip.data.images.limits import ImageError, ImageFormat, ImageLimits, find_format, format_names
from mobileclip.data.images.metadata import read_orientation
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

Buffer = bytes | memoryview

_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT"))
# What may say how a picture is turned; each is read once.
_PNG_NOTES = re.compile(rb"eXIf|[tiz](?:TXt|EXt)(Raw profile type exif\0|XML:com\.adobe\.xmp\0)")
_GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")
_GIF_EXTENSION, _GIF_CONTROL = 0x21, 0xF9
_BMP_PLAIN = frozenset((0, 3))
_EXIF_START = re.compile(rb"II\*\0|MM\0\*")
_MAX_NOTES = 8

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LISTS = (273, 279, 324, 325)
_READ = frozenset((*range(_WIDTH, _COMPRESSION + 1), 277, 278, 284, _TILE_WIDTH, _TILE_HEIGHT, *_LISTS))
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
        exif: the camera's notes, where they were left out.
        xmp: notes as XML, where they were left out.
    """

    data: bytes
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
    return Prepared(data=bare.data, exif=bare.exif, xmp=bare.xmp)


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

    def check(self) -> None:
        """Raise unless the picture may be decoded.

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
        if _TILE_WIDTH in self or _TILE_HEIGHT in self:
            across, down = self.numbers(_TILE_WIDTH, 0)[0], self.numbers(_TILE_HEIGHT, 0)[0]
            if not across or not down:
                raise ImageError("corrupt", f"{self._name} is a TIFF whose tiles have no size")
            # Tiles are decoded whole, however little of them is in the picture.
            self._limits.check_pixels(-(-width // across) * across, -(-height // down) * down, self._name)

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
    TiffTags(data, limits, name).check()
    return Prepared(data=data)


_PREPARE: Mapping[str, Callable[[bytes, ImageLimits, str], Prepared]] = {
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "AVIF": _boxes,
    "HEIF": _boxes,
}


# Of Canon, Olympus and Panasonic; the others are told from a TIFF by its tags.
_START = re.compile(rb"(?s)II\*\0.{4}CR|II(?:RO|RS|U\0)|MMOR")
_TIFF = (b"II*\0", b"MM\0*")
_REDUCED, _SEVERAL_BELOW, _DNG = 254, 330, 50706


def raw_preview(data: bytes, limits: ImageLimits, name: str) -> bytes | None:
    """Return the picture in a raw file as a file of its own, most often a JPEG; None if it is no raw file.

    Args:
        data: the file.
        limits: of its tags.
        name: of the image, for messages.

    Raises:
        ImageError: if there is no picture in it, or it is damaged; with the reason `missing_package` if rawpy is not
            installed.
    """
    if not _is_raw(data, limits, name):
        return None
    limits.check_file(len(data), name)
    try:
        with needed("reading raw files of cameras", "raw"):
            import rawpy
    except ImportError as error:
        raise ImageError("missing_package", f"{name} cannot be read: {error}", install=str(error)) from None
    try:
        with rawpy.imread(io.BytesIO(data)) as opened:
            found = opened.extract_thumb()
    except rawpy.LibRawError as error:
        reason = str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
        raise ImageError("corrupt", f"{name} is a raw file without a picture that can be read: {reason}") from error
    if found.format == rawpy.ThumbFormat.JPEG:
        return bytes(found.data)
    stream = io.BytesIO()
    Image.fromarray(np.asarray(found.data)).save(stream, "BMP")
    return stream.getvalue()


def _is_raw(data: bytes, limits: ImageLimits, name: str) -> bool:
    """Return whether a file is a raw one: by its start, or a TIFF that is a small picture above a larger one."""
    if _START.match(data):
        return True
    if not data.startswith(_TIFF):
        return False
    try:
        tags = TiffTags(data, limits, name)
        is_reduced = tags.numbers(_REDUCED, 0)[0] & 1 == 1
    except (ImageError, struct.error, IndexError, OverflowError):
        return False  # whoever reads it as a TIFF says what is wrong with it
    return _DNG in tags or (is_reduced and _SEVERAL_BELOW in tags)


_TURNED_BY_DECODER = ("TIFF", "HEIF")
_RAW_EXIF = "Raw profile type exif"


@attrs.frozen(kw_only=True)
class OpenedImage:
    """An image whose header was read, and whose pixels were not decoded yet.

    Args:
        image: Pillow's.
        kind: its format.
        prepared: what its decoder gets.
    """

    image: Image.Image
    kind: ImageFormat
    prepared: Prepared

    @property
    def orientation(self) -> int:
        """How it is turned, from 1 to 8; notes behind the pixels are known once it is decoded.

        TIFF and HEIF files are turned upright by their decoders.
        """
        if self.kind.name in _TURNED_BY_DECODER:
            return 1
        return read_orientation(self.exif, self.prepared.xmp or _xmp(self.image))

    @property
    def exif(self) -> bytes | None:
        """The camera's notes, as they are encoded; None where there are none."""
        return self.prepared.exif or _exif(self.image)


EncodedImage = str | Path | bytes | bytearray | memoryview | BinaryIO
"""An image as a file holds it: the path, the content, or a file that is opened for reading bytes."""


def read_image_file(source: EncodedImage, limits: ImageLimits, name: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: if it is missing, no regular file, cannot be read, or has more bytes than the limits allow.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    try:
        if isinstance(source, (str, Path)):
            limits.check_file(Path(source).stat().st_size, name)
            with storage.open_read(Path(source), regular=True) as stream:
                data = stream.read(limits.num_file_bytes + 1)
        else:
            if source.seekable():
                source.seek(0)
            data = source.read(limits.num_file_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing_file", f"{name} does not exist") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        raise ImageError("unreadable", f"{name} cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise ImageError("unreadable", f"{name} gives {type(data).__name__}, expected bytes; open it in binary mode")
    return data


def open_image(data: bytes, limits: ImageLimits, name: str = "image", *, reduce: int = 1) -> OpenedImage:
    """Return an image whose pixels may be decoded: its format is one that is read, and its size within the limits.

    Args:
        data: the file; of a raw one, the picture that the camera put into it is opened.
        limits: of its work and memory.
        name: of the image, for messages.
        reduce: 2, 4 or 8 if a JPEG will be decoded at that part of its size, for which the limits hold then.

    Raises:
        ImageError: if it is no image, broken, encoded in a way that is not read, or beyond a limit.
    """
    limits.check_file(len(data), name)
    preview = raw_preview(data, limits, name)
    data = data if preview is None else preview
    kind = find_format(data)
    if kind is None:
        raise ImageError(
            "not_an_image", f"{name} is not an image in a format that is read ({format_names()}); convert it first"
        )
    if kind.module is not None and not (kind.module in features.modules and features.check_module(kind.module)):
        raise ImageError("unsupported_format", f"{name} is {kind.name}, which this Pillow cannot decode; renew Pillow")
    try:
        reduce = reduce if kind.name == "JPEG" else 1
        prepared = prepare(kind.name, data, limits, name, reduce)
        image = _opened(kind, prepared.data, name)
        width, height = (-(-side // reduce) for side in image.size)
        limits.check_pixels(width, height, name)
    except ImageError:
        raise
    except Exception as error:
        # Plug-ins raise anything on broken bytes.
        raise image_error(error, name) from error
    return OpenedImage(image=image, kind=kind, prepared=prepared)


def _opened(kind: ImageFormat, data: bytes, name: str) -> Image.Image:
    if kind.extra is None:
        # Not by `Image.open`, which refuses by the size of a JPEG and not by the size at which it is decoded.
        for load_plugins in (Image.preinit, Image.init):
            if kind.name not in Image.OPEN:
                load_plugins()
        try:
            return Image.OPEN[kind.name][0](io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # as Pillow does
            raise UnidentifiedImageError(str(error)) from error
    try:
        with needed(f"reading {kind.name} files", kind.extra):
            # Its plug-in is not registered, which would change what Pillow does for everybody in this process.
            from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError("missing_package", f"{name} cannot be read: {error}", install=str(error)) from None
    plugin: Callable[[BinaryIO], Image.Image] = HeifImageFile
    return plugin(io.BytesIO(data))


def image_error(error: Exception, name: str) -> ImageError:
    """Return the `ImageError` for an error of opening or decoding; errors of the machine are raised."""
    raise_machine_fault(error)
    match error:
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            detail = f"{error}; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS too"
            return ImageError("too_large", f"{name} is too large ({detail})")
        case UnidentifiedImageError():
            return ImageError(
                "not_an_image", f"{name} begins like an image, but its header makes no sense; convert it first"
            )
        case _ if "truncated" in str(error).lower():
            return ImageError("truncated", f"{name} is truncated ({error}); fetch it again")
        case _:
            return ImageError("corrupt", f"{name} cannot be decoded ({type(error).__name__}: {error})")


def _exif(image: Image.Image) -> bytes | None:
    found = image.info.get("exif")
    if found is None and isinstance(text := image.info.get(_RAW_EXIF), str):
        try:
            found = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return None
    return found if isinstance(found, bytes) else None


def _xmp(image: Image.Image) -> bytes | None:
    found = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    return found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else None
