"""Compressed bytes, inflated to at most as many as the caller allows, whatever their headers claim.

zlib-ng reads gzip where it is installed, to the same bytes (extra `speed`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import IO, Any, cast

GZIP = b"\x1f\x8b"

# Read at once: what comes out is compared with what went in for each.
_PIECE_BYTES = 2**22
# What a small file may inflate to whatever the ratio.
_SLACK_BYTES = 2**26
# Files of gzip may be several ones after another; nobody writes this many for one sample.
_MAX_PARTS = 64


class TooLargeError(ValueError):
    """There is more than may be: a bomb, or a limit that is too low."""


def gunzip(data: bytes, *, limit: int) -> bytes:
    """Return the decompressed content of gzip data.

    Args:
        data: a file of gzip.
        limit: number of bytes that it may hold; no more than one beyond is inflated.

    Raises:
        TooLargeError: if it holds more.
        ValueError: if it is of too many parts.
        zlib.error: if it is damaged.
    """
    content: bytes = b""
    for _ in range(_MAX_PARTS):
        stream = _library().decompressobj(31)
        try:
            content += stream.decompress(data, limit + 1 - len(content))
        except _library().error as error:
            raise zlib.error(str(error)) from None
        if len(content) > limit:
            raise TooLargeError(f"it inflates to more than the {limit:,} bytes that it may hold")
        if not stream.eof:
            raise zlib.error("incomplete or truncated stream")
        data = stream.unused_data.lstrip(b"\0")
        if not data:
            return content
    raise ValueError(f"gzip wrote more than {_MAX_PARTS} parts")


class _CountedFile:
    """A compressed file, read on from its start, that counts its bytes.

    Args:
        stream: the file.
        start: its first bytes, which were read before.
    """

    def __init__(self, stream: IO[bytes], start: bytes) -> None:
        self._stream, self._start = stream, start
        self.num_read = 0

    def read(self, size: int) -> bytes:
        content, self._start = self._start[:size] or self._stream.read(size), self._start[size:]
        self.num_read += len(content)
        return content


_OPENED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    GZIP: lambda source: gzip.GzipFile(fileobj=source),
    b"BZ": bz2.BZ2File,
    b"\xfd7": partial(lzma.LZMAFile, format=lzma.FORMAT_XZ),
}


class InflatedFile:
    """A file that gzip, bzip2 or xz compressed, read on from its start.

    Args:
        stream: the compressed file.
        start: its first bytes, which were read before.
        inflation: how many times the bytes of the file may come out of it.
    """

    def __init__(self, stream: IO[bytes], start: bytes, *, inflation: int) -> None:
        self._compressed = _CountedFile(stream, start)
        source = cast("IO[bytes]", self._compressed)
        self._file = _OPENED[start[:2]](source)
        self._inflation = inflation
        self._num_inflated = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or those that are left.

        Raises:
            TooLargeError: if more comes out than the file may hold.
            EOFError: if the file is cut.
            OSError: if it is damaged.
        """
        pieces = []
        while size and (piece := self._next(min(size, _PIECE_BYTES))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        try:
            piece: bytes = self._file.read(size)
        except (zlib.error, lzma.LZMAError) as error:
            raise OSError(f"the compressed file is damaged: {error}") from None
        self._num_inflated += len(piece)
        if self._num_inflated > self._inflation * self._compressed.num_read + _SLACK_BYTES:
            raise TooLargeError(
                f"the compressed file inflates to more than {self._inflation} times its size; if it is no bomb, "
                "raise `inflation` in the limits, or decompress it first"
            )
        return piece


@cache
def _library() -> ModuleType:
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return zlib
    library: ModuleType = zlib_ng
    return library
