"""Which image files are read, what one may cost, and the error that says why one is not used.

Pillow knows some forty more formats. Some start other programs (PostScript: Ghostscript), some are decoded in Python,
byte by byte (QOI, BLP), and nearly none of them is met as a photograph. JPEG 2000 is left out because
its decoder has no bound that a header tells, and vector graphics (SVG, WMF, PDF) because they hold no pixels. HEIC,
which Pillow does not decode, is read by pillow-heif, an extra. Of raw files of cameras, the picture in them is read.
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
    """A kind of image file.

    Args:
        name: of Pillow's plug-in.
        extensions: that its files have, without the dot and in lower case, the usual one first.
        start: what its files begin with.
        extra: of this library, that brings its decoder; None where Pillow has it.
        is_held: whether its decoder holds a copy of the pixels for as long as the image lives.
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
"""Of cameras' raw files, of which the picture in them is read; see `raw_preview`."""

IMAGE_EXTENSIONS = (*(extension for kind in IMAGE_FORMATS for extension in kind.extensions), *RAW_EXTENSIONS)
"""Every extension of an image file, without the dot; the only list of them."""


def find_format(data: bytes) -> ImageFormat | None:
    """Return what kind of image file begins like this, or None if it is none that is read."""
    return next((kind for kind in IMAGE_FORMATS if kind.start.match(data)), None)


def is_image_name(name: str) -> bool:
    """Return whether a file is called like an image, as `photo.JPG` is."""
    _, dot, extension = name.rpartition(".")
    return bool(dot) and extension.lower() in IMAGE_EXTENSIONS


def format_names() -> str:
    """Return the names of all kinds, for a message."""
    return ", ".join(kind.name for kind in IMAGE_FORMATS)


MIB = 2**20
MAX_PIXELS = "MOBILECLIP_MAX_PIXELS"
_RAISE = f"if you trust it, set {MAX_PIXELS} to more pixels (num_pixels of ImageLimits), or scale it down"


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        reason: one of a few words, to be counted: `missing_file`, `unreadable` (a folder, a pipe, no permission),
            `not_an_image`, `unsupported_format`, `truncated`, `corrupt`, `too_large`, `too_many_scans`,
            `out_of_memory`, `unsupported_mode`, `extreme_shape`, `missing_package`.
        message: which image, what is wrong with it and what to do.
        install: of the reason `missing_package`: what is needed, and the command that installs it.
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
    """Return a default that grows with the number of pixels."""
    return attrs.Factory(lambda limits: max(least, per_pixel * limits.num_pixels), takes_self=True)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageLimits:
    """Limits of the work and memory that one image may cost; all are checked before it is decoded.

    The time is bounded by these counts, not by a clock: whether a sample is used must not depend on how busy the
    machine is. Beyond them nothing is decoded, and the image is an `ImageError`.

    Args:
        num_pixels: width times height of what is decoded: of a JPEG at a half, a quarter or an eighth of its size, of
            that. By default what the environment variable `MOBILECLIP_MAX_PIXELS` says, or 89,478,485, as for Pillow.
            The limits of the file and of `num_scan_pixels` grow with it where they are not given. Decoding takes up to
            20 bytes a pixel.
        num_file_bytes: of the file.
        num_scans: number of scans of a JPEG; encoders write about ten, and at most a few dozen.
        num_scan_pixels: scans of a JPEG times its pixels, at whatever size it is decoded; the default allows twelve
            scans of the largest image.

    Raises:
        ValueError: if a number is not positive.
    """

    num_pixels: int = _count(attrs.Factory(_most_pixels))
    num_file_bytes: int = _count(_growing(256 * MIB, 3))
    num_scans: int = _count(100)
    num_scan_pixels: int = _count(_growing(2**30, 12))

    def check_file(self, num_bytes: int, name: str) -> None:
        """Raise unless a file of this many bytes may be looked at.

        Raises:
            ImageError: with the reason `too_large`.
        """
        if num_bytes > self.num_file_bytes:
            raise ImageError("too_large", f"{name} has more than {self.num_file_bytes:,} bytes, the limit; {_RAISE}")

    def check_pixels(self, width: int, height: int, name: str) -> None:
        """Raise unless an image of this size may be decoded.

        Raises:
            ImageError: with the reason `too_large`.
        """
        if width * height > self.num_pixels:
            raise ImageError(
                "too_large",
                f"{name} is too large: {width} x {height} pixels, the limit is {self.num_pixels:,}; {_RAISE}",
            )

    def check_scans(self, num_scans: int, num_pixels: int, name: str) -> None:
        """Raise unless a JPEG of this many scans and pixels may be decoded.

        Raises:
            ImageError: with the reason `too_many_scans`.
        """
        if num_scans > self.num_scans or num_scans * num_pixels > self.num_scan_pixels:
            raise ImageError(
                "too_many_scans",
                f"{name} has {num_scans} scans of {num_pixels:,} pixels; the limit is {self.num_scans} scans, and "
                f"{self.num_scan_pixels:,} pixels in all of them; {_RAISE}",
            )
