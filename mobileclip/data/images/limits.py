"""The supported image formats, limits on the cost of an image, and the error for an unusable image.

Pillow supports about forty more formats, few of which are used for photographs. Some formats start other programs
(PostScript starts Ghostscript), and Pillow decodes some formats byte by byte in Python (QOI, BLP). JPEG 2000 is left
out because its header gives no bound on the decoder's work. Vector graphics (SVG, WMF, PDF) are left out because they
hold no pixels. pillow-heif (extra `heif`) decodes HEIC. Of a camera raw file, only the embedded preview is read.
"""

from __future__ import annotations

import os
import re
from typing import Any

import attrs
from attrs import validators

from mobileclip.strict import strict


@attrs.frozen(kw_only=True)
class ImageFormat:
    """An image file format.

    Args:
        name: name of Pillow's plug-in.
        extensions: file extensions in lower case without the dot, the most common extension first.
        start: pattern that matches the first bytes of a file in this format.
        extra: extra of this library that installs the decoder; None if Pillow includes the decoder.
        is_held: whether the decoder keeps a copy of the pixels for the lifetime of the image.
    """

    name: str
    extensions: tuple[str, ...]
    start: re.Pattern[bytes]
    extra: str | None = None
    is_held: bool = False


IMAGE_FORMATS = (
    ImageFormat(name="JPEG", extensions=("jpg", "jpeg", "jpe", "jfif", "mpo"), start=re.compile(rb"\xff\xd8\xff")),
    ImageFormat(name="PNG", extensions=("png", "apng"), start=re.compile(rb"\x89PNG\r\n\x1a\n")),
    ImageFormat(name="WEBP", extensions=("webp",), start=re.compile(rb"(?s)RIFF.{4}WEBPVP8[ LX]"), is_held=True),
    ImageFormat(name="GIF", extensions=("gif",), start=re.compile(rb"GIF8[79]a")),
    ImageFormat(name="BMP", extensions=("bmp",), start=re.compile(rb"BM")),
    ImageFormat(name="TIFF", extensions=("tif", "tiff"), start=re.compile(rb"II[*+]\0|MM\0[*+]")),
    ImageFormat(name="AVIF", extensions=("avif",), start=re.compile(rb"(?s).{4}ftyp.{0,64}?avi[fs]"), is_held=True),
    ImageFormat(
        name="HEIF",
        extensions=("heic", "heif", "hif"),
        start=re.compile(rb"(?s).{4}ftyp.{0,64}?he(?:ic|ix|im|is|vc|vx|vm|vs)"),
        extra="heif",
        is_held=True,
    ),
)

RAW_EXTENSIONS = ("dng", "cr2", "nef", "arw", "orf", "rw2")
"""Extensions of camera raw files, from which the embedded preview is read; see `raw_preview`."""

IMAGE_EXTENSIONS = (*(extension for kind in IMAGE_FORMATS for extension in kind.extensions), *RAW_EXTENSIONS)
"""All extensions of image files, without the dot."""


def find_format(data: bytes) -> ImageFormat | None:
    """Return the format of a file by its first bytes, or None if the format is not supported."""
    return next((kind for kind in IMAGE_FORMATS if kind.start.match(data)), None)


def is_image_name(name: str) -> bool:
    """Return whether a file name, such as `photo.JPG`, has an image extension."""
    _, dot, extension = name.rpartition(".")
    return bool(dot) and extension.lower() in IMAGE_EXTENSIONS


def format_names() -> str:
    """Return the comma-separated names of all supported formats."""
    return ", ".join(kind.name for kind in IMAGE_FORMATS)


MIB = 2**20
MAX_PIXELS = "MOBILECLIP_MAX_PIXELS"
_RAISE = f"if you trust the image, increase {MAX_PIXELS} (num_pixels of ImageLimits), or scale the image down"


class ImageError(ValueError):
    """Raised for an image that is missing, damaged, unsupported or beyond a limit.

    Args:
        reason: identifier by which errors are counted: `missing_file`, `unreadable` (a folder, a pipe, no permission),
            `not_an_image`, `unsupported_format`, `truncated`, `corrupt`, `too_large`, `too_many_scans`,
            `out_of_memory`, `unsupported_mode`, `extreme_shape`, `missing_package`.
        message: message that names the image, the problem and the remedy.
        install: for the reason `missing_package`, the missing package and its installation command; otherwise empty.
    """

    def __init__(self, reason: str, message: str, install: str = "") -> None:
        super().__init__(reason, message, install)
        self.reason = reason
        self.message = message
        self.install = install

    def __str__(self) -> str:
        return self.message


def _count(default: Any) -> int:
    number: int = attrs.field(default=default, validator=[validators.instance_of(int), validators.gt(0)])
    return number


def _most_pixels() -> int:
    given = os.environ.get(MAX_PIXELS, "89478485")
    if not (given.isascii() and given.isdecimal() and int(given)):
        raise ValueError(f"{MAX_PIXELS} is {given!r}, expected a number of pixels such as 200000000")
    return int(given)


def _growing(least: int, per_pixel: int) -> Any:
    """Return an attrs default that grows with `num_pixels`."""
    return attrs.Factory(lambda limits: max(least, per_pixel * limits.num_pixels), takes_self=True)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageLimits:
    """Limits on the work and memory for one image; all limits are checked before decoding.

    The limits are counts, not times, so that the load of the machine does not change the set of usable samples. An
    image beyond the limits is not decoded and raises `ImageError`.

    Args:
        num_pixels: maximum width times height of the decoded image, after any reduction of a JPEG to 1/2, 1/4 or 1/8.
            The default is the environment variable `MOBILECLIP_MAX_PIXELS`, or Pillow's 89,478,485. The defaults of
            `num_file_bytes` and `num_scan_pixels` grow with this limit. Decoding takes up to 20 bytes per pixel.
        num_file_bytes: maximum size of the file, in bytes.
        num_scans: maximum number of scans of a JPEG; JPEG encoders write about ten, at most a few dozen.
        num_scan_pixels: maximum product of a JPEG's number of scans and its full-size number of pixels; the default
            allows twelve scans of the largest image.

    Raises:
        ValueError: if a number is not positive.
    """

    num_pixels: int = _count(attrs.Factory(_most_pixels))
    num_file_bytes: int = _count(_growing(256 * MIB, 3))
    num_scans: int = _count(100)
    num_scan_pixels: int = _count(_growing(2**30, 12))

    def check_file(self, num_bytes: int, name: str) -> None:
        """Raise if a file has too many bytes to be read.

        Raises:
            ImageError: if the file has more than `num_file_bytes` bytes; reason `too_large`.
        """
        if num_bytes > self.num_file_bytes:
            raise ImageError(
                "too_large",
                f"{name} has more than {self.num_file_bytes:,} bytes; if you trust the file, increase num_file_bytes "
                f"of ImageLimits, or {MAX_PIXELS}, with which num_file_bytes grows",
            )

    def check_pixels(self, width: int, height: int, name: str) -> None:
        """Raise if an image has too many pixels to be decoded.

        Raises:
            ImageError: if the image has more than `num_pixels` pixels; reason `too_large`.
        """
        if width * height > self.num_pixels:
            raise ImageError(
                "too_large",
                f"{name} is too large: it has {width} x {height} pixels, the limit is {self.num_pixels:,}; {_RAISE}",
            )

    def check_scans(self, num_scans: int, num_pixels: int, name: str) -> None:
        """Raise if a JPEG has too many scans, or too many pixels in all scans, to be decoded.

        Raises:
            ImageError: if the JPEG exceeds `num_scans` or `num_scan_pixels`; reason `too_many_scans`.
        """
        if num_scans > self.num_scans or num_scans * num_pixels > self.num_scan_pixels:
            raise ImageError(
                "too_many_scans",
                f"{name} has {num_scans} scans of {num_pixels:,} pixels; the limit is {self.num_scans} scans, and "
                f"{self.num_scan_pixels:,} pixels in all scans together; {_RAISE}",
            )
