"""Compressed bytes, inflated to at most as many as the caller allows, whatever their headers claim.

zlib-ng does it where it is installed, to the same bytes (extra `speed`).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from functools import cache
from types import ModuleType
from typing import IO, Any

GZIP = b"\x1f\x8b"

# What headers and tables of a stream take.
_HEADROOM = 512
# Of a compressed file: little, since what follows a part is copied for every part.
_PIECE_BYTES = 2**14
# What a small file may inflate to whatever the ratio.
_SLACK_BYTES = 2**26
# Files of gzip may be several ones after another; nobody writes this many for one sample.
_MAX_PARTS = 64
_XZ_MEMORY_BYTES = 2**28


class TooLargeError(ValueError):
    """There is more than may be: a bomb, or a limit that is too low."""


class InflateStream:
    """A deflated stream that is inflated in steps, without a copy of what is left of it at each.

    Args:
        data: the stream.
        wbits: as zlib counts them: -15 for a stream without a header.
    """

    def __init__(self, data: bytes | memoryview, wbits: int) -> None:
        self._data = memoryview(data)
        self._stream = _library().decompressobj(wbits)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or those that are left.

        Raises:
            zlib.error: if the stream is damaged.
        """
        content = b""
        try:
            while len(content) < size and not self._stream.eof:
                missing = size - len(content)
                piece = self._stream.unconsumed_tail or self._next(missing)
                more: bytes = self._stream.decompress(piece, missing)
                if not more and not piece:
                    break
                content += more
        except _library().error as error:
            raise zlib.error(str(error)) from None
        return content

    def _next(self, size: int) -> memoryview:
        """Return enough of the stream for so many bytes, if they can be compressed, or nearly enough."""
        piece, self._data = self._data[: size + _HEADROOM], self._data[size + _HEADROOM :]
        return piece


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


class _GzipMachine:
    """What inflates one part of a file, as `bz2.BZ2Decompressor` does."""

    def __init__(self) -> None:
        self._stream = _library().decompressobj(31)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail and not self._stream.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content: bytes = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        return content


class InflatedFile:
    """A file that gzip, bzip2 or xz compressed, read on from its start.

    Args:
        stream: the compressed file.
        start: its first bytes, which were read before.
        inflation: how many times the bytes of the file may come out of it.
    """

    def __init__(self, stream: IO[bytes], start: bytes, *, inflation: int) -> None:
        self._stream = stream
        self._kind = start[:2]
        self._machine = self._new_machine()
        self._piece = start
        self._inflation = inflation
        self._num_read = len(start)
        self._num_inflated = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or those that are left.

        Raises:
            TooLargeError: if more comes out than the file may hold.
            EOFError: if the file is cut.
            OSError: if it is damaged.
        """
        pieces = []
        missing = size
        try:
            while missing and (piece := self._next(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except (_library().error, lzma.LZMAError) as error:
            raise OSError(f"the compressed file is damaged: {error}") from None
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        """Return some of the next `size` bytes; none at the end."""
        while True:
            if self._machine.eof:
                rest = (self._machine.unused_data or self._fill()).lstrip(b"\0")
                while not rest:
                    if not (rest := self._fill()):
                        return b""
                    rest = rest.lstrip(b"\0")
                self._machine, self._piece = self._new_machine(), rest
            if self._machine.needs_input and not self._piece:
                self._piece = self._fill()
                if not self._piece:
                    raise EOFError("the compressed file ends before its end mark")
            content = self._machine.decompress(self._piece, size)
            self._piece = b""
            self._num_inflated += len(content)
            if self._num_inflated > self._inflation * self._num_read + _SLACK_BYTES:
                raise TooLargeError(
                    f"the compressed file inflates to more than {self._inflation} times its size; if it is no bomb, "
                    "raise `inflation` in the limits, or decompress it first"
                )
            if content:
                return content

    def _fill(self) -> bytes:
        piece = self._stream.read(_PIECE_BYTES)
        self._num_read += len(piece)
        return piece

    def _new_machine(self) -> _GzipMachine | bz2.BZ2Decompressor | lzma.LZMADecompressor:
        if self._kind == GZIP:
            return _GzipMachine()
        if self._kind == b"BZ":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)


@cache
def _library() -> ModuleType:
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return zlib
    library: ModuleType = zlib_ng
    return library
