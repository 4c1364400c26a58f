"""Opens image files, the only place that does: a few formats, within limits, without their metadata."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import attrs
from PIL import Image, UnidentifiedImageError, features

from mobileclip import storage
from mobileclip.data.images.formats import ImageFormat, find_format, format_names
from mobileclip.data.images.guard import Prepared, prepare
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.orientation import read_orientation
from mobileclip.data.images.raw import raw_preview
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_MOST_STORED_BYTES = 4
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
        num_pixels = width * height
        stored = _STORED_BYTES.get(image.mode, _MOST_STORED_BYTES)
        decoding = num_pixels * (stored + kind.num_held) + prepared.num_work_bytes
        converting = num_pixels * (stored + kind.num_held + _conversion_bytes(image, kind))
        limits.check_bytes(max(decoding, converting) + len(data) + len(prepared.data), name)
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


def _conversion_bytes(image: Image.Image, kind: ImageFormat) -> int:
    if image.mode == "RGB":
        return _MOST_STORED_BYTES if kind.num_held else 0
    return 2 * _MOST_STORED_BYTES if image.mode == "P" else _MOST_STORED_BYTES


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
