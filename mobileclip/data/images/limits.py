"""Limits of the work and memory that one image may cost, checked before decoding."""

from __future__ import annotations

import os
from typing import Any

import attrs
from attrs import validators

from mobileclip.strict import strict

MIB = 2**20
MAX_PIXELS = "MOBILECLIP_MAX_PIXELS"
_RAISE = f"if you trust it, set {MAX_PIXELS} to more pixels (num_pixels of ImageLimits), or scale it down"


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        reason: one of a few words, to be counted: `missing_file`, `unreadable` (a folder, a pipe, no permission),
            `not_an_image`, `unsupported_format`, `truncated`, `corrupt`, `too_large`, `too_many_scans`,
            `too_many_parts`, `out_of_memory`, `unsupported_mode`, `extreme_shape`, `missing_package`.
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
            The limits of bytes and of `num_scan_pixels` grow with it where they are not given.
        num_file_bytes: of the file.
        num_scans: of a JPEG; encoders write about ten, and at most a few dozen.
        num_scan_pixels: scans of a JPEG times its pixels, at whatever size it is decoded; the default allows twelve
            scans of the largest image.
        num_parts: blocks, chunks, segments, strips and tiles of a file, which are looked at one by one.
        num_bytes: of memory that decoding takes at its peak, as estimated from format, mode and size.

    Raises:
        ValueError: if a number is not positive.
    """

    num_pixels: int = _count(attrs.Factory(_most_pixels))
    num_file_bytes: int = _count(_growing(256 * MIB, 3))
    num_scans: int = _count(100)
    num_scan_pixels: int = _count(_growing(2**30, 12))
    num_parts: int = _count(100_000)
    num_bytes: int = _count(_growing(1024 * MIB, 12))

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

    def check_parts(self, num_parts: int, name: str) -> None:
        """Raise unless a file of this many parts may be looked at.

        Raises:
            ImageError: with the reason `too_many_parts`.
        """
        if num_parts > self.num_parts:
            raise ImageError("too_many_parts", f"{name} is made of more than {self.num_parts:,} parts")

    def check_bytes(self, num_bytes: int, name: str) -> None:
        """Raise unless decoding may take this much memory.

        Raises:
            ImageError: with the reason `too_large`.
        """
        if num_bytes > self.num_bytes:
            raise ImageError(
                "too_large",
                f"{name} is too large: decoding it takes about {num_bytes / MIB:,.0f} MiB, the limit is "
                f"{self.num_bytes / MIB:,.0f} MiB; {_RAISE}",
            )
