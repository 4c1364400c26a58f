"""The kinds of image files that are read, and no others: what they are called and how they begin.

Pillow knows some forty more. Some start other programs (PostScript: Ghostscript), some are decoded in Python, byte by
byte (QOI, BLP, run-length BMP), and nearly none of them is met as a photograph. JPEG 2000 is left out because its
decoder has no bound that a header tells, and vector graphics (SVG, WMF, PDF) because they hold no pixels. HEIC, which
Pillow does not decode, is read by pillow-heif, an extra. Of raw files of cameras, the picture in them is read.
"""

from __future__ import annotations

import re

import attrs


@attrs.frozen(kw_only=True)
class ImageFormat:
    """A kind of image file.

    Args:
        name: of Pillow's plug-in.
        extensions: that its files have, without the dot and in lower case, the usual one first.
        start: what its files begin with.
        module: of Pillow's, which not every Pillow was built with; None where all were.
        extra: of this library, that brings its decoder; None where Pillow has it.
        num_held: bytes a pixel that its decoder holds beside the image, for as long as that lives: twice the canvas,
            the planes of brightness and colour, and a copy of what was decoded.
    """

    name: str
    extensions: tuple[str, ...]
    start: re.Pattern[bytes]
    module: str | None = None
    extra: str | None = None
    num_held: int = 0


IMAGE_FORMATS = (
    ImageFormat(name="JPEG", extensions=("jpg", "jpeg", "jpe", "jfif", "mpo"), start=re.compile(rb"\xff\xd8\xff")),
    ImageFormat(name="PNG", extensions=("png", "apng"), start=re.compile(rb"\x89PNG\r\n\x1a\n")),
    ImageFormat(
        name="WEBP",
        extensions=("webp",),
        start=re.compile(rb"(?s)RIFF.{4}WEBPVP8[ LX]"),
        module="webp",
        num_held=15,
    ),
    ImageFormat(name="GIF", extensions=("gif",), start=re.compile(rb"GIF8[79]a")),
    ImageFormat(name="BMP", extensions=("bmp",), start=re.compile(rb"BM")),
    ImageFormat(name="TIFF", extensions=("tif", "tiff"), start=re.compile(rb"II[*+]\0|MM\0[*+]")),
    ImageFormat(
        name="AVIF",
        extensions=("avif",),
        start=re.compile(rb"(?s).{4}ftyp.{0,64}?avi[fs]"),
        module="avif",
        num_held=20,
    ),
    ImageFormat(
        name="HEIF",
        extensions=("heic", "heif", "hif"),
        start=re.compile(rb"(?s).{4}ftyp.{0,64}?he(?:ic|ix|im|is|vc|vx|vm|vs)"),
        extra="heif",
        num_held=8,
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
