"""Compressed bytes, inflated by zlib-ng where it is installed, to the same bytes: `pip install 'mobileclip[speed]'`."""

from __future__ import annotations

import zlib
from functools import cache
from types import ModuleType


class InflateStream:
    """A deflated stream that is inflated in steps, as `zlib.decompressobj` does it.

    Args:
        wbits: as zlib counts them: -15 for a stream without a header.
    """

    def __init__(self, wbits: int) -> None:
        self._stream = _library().decompressobj(wbits)

    @property
    def unconsumed_tail(self) -> bytes:
        """What is still to be given to `read`."""
        tail: bytes = self._stream.unconsumed_tail
        return tail

    def read(self, data: bytes, max_length: int) -> bytes:
        """Return the next bytes, at most `max_length` of them.

        Raises:
            zlib.error: if the stream is damaged.
        """
        try:
            content: bytes = self._stream.decompress(data, max_length)
        except _library().error as error:
            raise zlib.error(str(error)) from None
        return content


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
