"""The only module that opens image files; it accepts few formats, applies limits, and removes JPEG and PNG metadata.

A malicious image file attacks the program that opens it in one of three ways:

- The file starts another program or an interpreter. This module opens only the formats of `limits.py` and recognises a
  format by the first bytes of the file, never by Pillow's detection.
- The file exhausts memory or time. This module counts pixels, bytes and the scans of a JPEG before decoding and applies
  `ImageLimits`.
- The file contains expensive metadata, which Pillow parses in Python, in part repeatedly. The pixels do not depend on
  metadata, so this module removes all metadata except the orientation from JPEG and PNG files before decoding. The tags
  of a TIFF file may claim at most twice the size of the file.

A decoder may still fail after the checks; `image_error` converts the failure to an `ImageError`. This module does not
protect against decoders with vulnerabilities that let a file run code; keep Pillow up to date.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import attrs
import numpy as np
from PIL import Image, UnidentifiedImageError

from mobileclip import storage
from mobileclip.data.images.jpeg import Jpeg, read_jpeg
from mobileclip.data.images.limits import ImageError, ImageFormat, ImageLimits, find_format, format_names
from mobileclip.data.images.metadata import TAG_BYTES, read_orientation, tiff_tags, whole_number
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT"))
# Chunks that may hold the orientation; each kind is read once.
_PNG_NOTES = re.compile(rb"eXIf|[tiz](?:TXt|EXt)(Raw profile type exif\0|XML:com\.adobe\.xmp\0)")


def _bare_png(data: bytes) -> bytes:
    """Return a PNG with only the chunks that affect pixels or orientation."""
    kept, seen = [data[:8]], set()
    begun = position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IEND" or end > len(data):
            break
        note = _PNG_NOTES.match(data, position + 4)
        text = None if note is None else data[position + 8 : note.end()] or kind
        if kind not in _PNG_PIXELS and (text is None or text in seen):
            kept.append(data[begun:position])
            begun = end
        seen.add(text)
        position = end
    return b"".join((*kept, data[begun:])) if begun > 8 else data


def _checked_jpeg(data: bytes, limits: ImageLimits, name: str, reduce: int) -> Jpeg:
    jpeg = read_jpeg(data)
    if jpeg is None:
        raise ImageError("truncated", f"{name} is truncated: it contains no pixels; fetch it again")
    jpeg.check(limits, name, reduce)
    return jpeg


def _check_tags(data: bytes, name: str) -> None:
    """Raise if tags of a TIFF file overlap: Pillow reads each tag separately, perhaps 2 MB for each of 100,000 tags."""
    num_bytes = sum(TAG_BYTES.get(kind, 0) * num_values for _, kind, num_values, _ in tiff_tags(data))
    if num_bytes > 2 * len(data):
        raise ImageError("corrupt", f"{name} has tags that claim {num_bytes:,} bytes; the file has {len(data):,} bytes")


# Raw files of Canon, Olympus and Panasonic; other raw files differ from a TIFF only in their tags.
_RAW_START = re.compile(rb"(?s)II\*\0.{4}CR|II(?:RO|RS|U\0)|MMOR")
_TIFF = (b"II*\0", b"MM\0*")
_REDUCED, _SEVERAL_BELOW, _DNG = 254, 330, 50706


def raw_preview(data: bytes, limits: ImageLimits, name: str) -> bytes | None:
    """Return the preview in a camera raw file as an image file, usually a JPEG; None if `data` is not a raw file.

    Args:
        data: content of the file.
        limits: limits on the size of the file.
        name: name of the image, for messages.

    Raises:
        ImageError: if the file is too large, damaged or without a preview, or if rawpy is not installed (reason
            `missing_package`).
    """
    if not _is_raw(data):
        return None
    limits.check_file(len(data), name)
    try:
        with needed("reading camera raw files", "raw"):
            import rawpy
    except ImportError as error:
        raise ImageError("missing_package", f"{name} cannot be read: {error}", install=str(error)) from None
    try:
        with rawpy.imread(io.BytesIO(data)) as opened:
            found = opened.extract_thumb()
    except rawpy.LibRawError as error:
        reason = str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
        raise ImageError("corrupt", f"{name} is a raw file without a readable preview: {reason}") from error
    if found.format == rawpy.ThumbFormat.JPEG:
        return bytes(found.data)
    stream = io.BytesIO()
    Image.fromarray(np.asarray(found.data)).save(stream, "BMP")
    return stream.getvalue()


def _is_raw(data: bytes) -> bool:
    """Return whether a file is a camera raw file, by its first bytes or, for a TIFF, by its tags."""
    if _RAW_START.match(data):
        return True
    if not data.startswith(_TIFF):
        return False
    try:
        tags = {number: whole_number(data, kind, place) for number, kind, _, place in tiff_tags(data)}
    except (struct.error, OverflowError):
        return False  # the TIFF reader reports the problem
    return _DNG in tags or (_SEVERAL_BELOW in tags and bool((tags.get(_REDUCED) or 0) & 1))


_TURNED_BY_DECODER = ("TIFF", "HEIF")
_RAW_EXIF = "Raw profile type exif"


@attrs.frozen(kw_only=True)
class OpenedImage:
    """An image whose header was read but whose pixels are not decoded yet.

    Args:
        image: Pillow image.
        kind: format of the file.
        jpeg: parsed header of a JPEG; None for other formats.
    """

    image: Image.Image
    kind: ImageFormat
    jpeg: Jpeg | None

    @property
    def orientation(self) -> int:
        """EXIF orientation, from 1 to 8; an orientation stored after the pixels is available only after decoding.

        The decoders of TIFF and HEIF files turn images upright, so the orientation of these images is always 1.
        """
        if self.kind.name in _TURNED_BY_DECODER:
            return 1
        found = self.image.info.get("xmp", self.image.info.get("XML:com.adobe.xmp"))
        xmp = found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else None
        return read_orientation(self.exif, xmp if self.jpeg is None else self.jpeg.xmp)

    @property
    def exif(self) -> bytes | None:
        """Encoded EXIF metadata, or None if the file has none."""
        if self.jpeg is not None:
            return self.jpeg.exif
        found = self.image.info.get("exif")
        if found is None and isinstance(text := self.image.info.get(_RAW_EXIF), str):
            try:
                found = bytes.fromhex("".join(text.split("\n")[3:]))
            except ValueError:
                return None
        return found if isinstance(found, bytes) else None


EncodedImage = str | Path | bytes | bytearray | memoryview | BinaryIO
"""An encoded image: a path, the content of a file, or a binary file object."""


def read_image_file(source: EncodedImage, limits: ImageLimits, name: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: if the file is missing, is not a regular file, cannot be read, or has more bytes than the limits
            allow.
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
        raise ImageError(
            "unreadable", f"{name} returns {type(data).__name__}, expected bytes; open the file in binary mode"
        )
    return data


def open_image(data: bytes, limits: ImageLimits, name: str = "image", *, reduce: int = 1) -> OpenedImage:
    """Return an image that is safe to decode: the format is supported and the size is within the limits.

    Args:
        data: content of the file; for a camera raw file, the embedded preview is opened.
        limits: limits on work and memory.
        name: name of the image, for messages.
        reduce: 2, 4 or 8 if a JPEG will be decoded at 1/2, 1/4 or 1/8 of its size; the limits then apply to the reduced
            size.

    Raises:
        ImageError: if `data` is not an image, is damaged, has an unsupported encoding, or exceeds a limit.
    """
    limits.check_file(len(data), name)
    preview = raw_preview(data, limits, name)
    data = data if preview is None else preview
    kind = find_format(data)
    if kind is None:
        raise ImageError(
            "not_an_image", f"{name} is not an image in a supported format ({format_names()}); convert it first"
        )
    try:
        jpeg = _checked_jpeg(data, limits, name, reduce) if kind.name == "JPEG" else None
        if jpeg is not None:
            data = jpeg.data
        elif kind.name == "PNG":
            data = _bare_png(data)
        elif kind.name == "TIFF":
            _check_tags(data, name)
        image = _opened(kind, data, name)
        if jpeg is None:
            limits.check_pixels(*image.size, name)
    except ImageError:
        raise
    except (OverflowError, struct.error):
        raise ImageError("truncated", f"{name} is truncated: it ends within its header; fetch it again") from None
    except Exception as error:
        # Plug-ins may raise any exception on broken bytes.
        raise image_error(error, name) from error
    return OpenedImage(image=image, kind=kind, jpeg=jpeg)


def _opened(kind: ImageFormat, data: bytes, name: str) -> Image.Image:
    if kind.extra is None:
        # `Image.open` is not used: it rejects a JPEG by its full size, not by the size at which it is decoded.
        for load_plugins in (Image.preinit, Image.init):
            if kind.name not in Image.OPEN:
                load_plugins()
        if kind.name not in Image.OPEN:
            raise ImageError(
                "unsupported_format",
                f"{name} is {kind.name}, which this version of Pillow does not support; upgrade Pillow",
            )
        try:
            return Image.OPEN[kind.name][0](io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # as Pillow does
            raise UnidentifiedImageError(str(error)) from error
    try:
        with needed(f"reading {kind.name} files", kind.extra):
            # The plug-in is not registered, because that would change Pillow for all code in this process.
            from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError("missing_package", f"{name} cannot be read: {error}", install=str(error)) from None
    plugin: Callable[[BinaryIO], Image.Image] = HeifImageFile
    return plugin(io.BytesIO(data))


def image_error(error: Exception, name: str) -> ImageError:
    """Convert an exception from opening or decoding to an `ImageError`; raise if the machine ran out of memory."""
    raise_machine_fault(error)
    match error:
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            detail = f"{error}; if you trust the image, increase PIL.Image.MAX_IMAGE_PIXELS too"
            return ImageError("too_large", f"{name} is too large ({detail})")
        case UnidentifiedImageError():
            return ImageError(
                "not_an_image", f"{name} starts like an image, but has an invalid header; convert it first"
            )
        case _ if "truncated" in str(error).lower():
            return ImageError("truncated", f"{name} is truncated ({error}); fetch it again")
        case _:
            return ImageError("corrupt", f"{name} cannot be decoded ({type(error).__name__}: {error})")
