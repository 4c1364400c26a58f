"""Compressed bytes, inflated by zlib-ng where it is installed, to the same bytes: `pip install 'mobileclip[speed]'`."""

from __future__ import annotations

import zlib
from functools import cache
from types import ModuleType

# What headers and tables of a stream take.
_HEADROOM = 512


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
                content = content + more if content else more
        except _library().error as error:
            raise zlib.error(str(error)) from None
        return content

    def _next(self, size: int) -> memoryview:
        """Return enough of the stream for so many bytes, if they can be compressed, or nearly enough."""
        piece, self._data = self._data[: size + _HEADROOM], self._data[size + _HEADROOM :]
        return piece


def inflate(data: bytes, *, wbits: int, size: int) -> bytes:
    """Return what a stream holds.

    Args:
        data: the stream.
        wbits: as zlib counts them: 31 for one that gzip wrote.
        size: number of bytes that it is likely to hold.

    Raises:
        zlib.error: if it is damaged.
    """
    try:
        content: bytes = _library().decompress(data, wbits=wbits, bufsize=size)
    except _library().error as error:
        raise zlib.error(str(error)) from None
    return content


@cache
def _library() -> ModuleType:
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return zlib
    library: ModuleType = zlib_ng
    return library
