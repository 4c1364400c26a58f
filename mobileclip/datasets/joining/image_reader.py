"""Images read by their place, as few at a time as fit into memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.shards.files import RawSample
from mobileclip.data.shards.tar import read_up_to

_BYTES_AT_ONCE = 64 * 2**20
_MAX_OPEN_SHARDS = 32


@attrs.frozen(kw_only=True)
class FoundImage:
    """An image read from its shard, with the caption and the JSON stored beside it.

    Args:
        shard: where it was.
        data: the encoded image.
        text: the caption beside it, where there is one.
        json: the JSON beside it, where there is one.
    """

    shard: str
    data: bytes
    text: bytes | None
    json: bytes | None


def portions(
    pairs: Sequence[tuple[RawSample, int | None]], sizes: Records
) -> Iterator[list[tuple[RawSample, int | None]]]:
    """Yield the samples in portions whose images fit into memory.

    Args:
        pairs: samples, each with the row of its match.
        sizes: of the images, by row.
    """
    portion: list[tuple[RawSample, int | None]] = []
    num_bytes = 0
    for sample, row in pairs:
        size = 0 if row is None else int(sizes[row])
        if portion and num_bytes + size > _BYTES_AT_ONCE:
            yield portion
            portion, num_bytes = [], 0
        portion.append((sample, row))
        num_bytes += size
    if portion:
        yield portion


class ImageReader:
    """Reads images by their matches, in the order of the shards they are in, a few of which stay open.

    Args:
        shards: paths or URLs by number.
    """

    def __init__(self, shards: Mapping[int, str]) -> None:
        self._shards = shards
        self._open: OrderedDict[str, tuple[ExitStack, IO[bytes]]] = OrderedDict()

    def read(self, matches: Records) -> Iterator[tuple[int, FoundImage]]:
        """Yield the row of each match and its image, in the order of the shards.

        Raises:
            ValueError: if a shard is shorter than it was.
        """
        for row in np.lexsort((matches["start"], matches["shard"])).tolist():
            shard = self._shards[int(matches["shard"][row])]
            data, text, json = (
                self._read(shard, int(matches[f"{name}start"][row]), int(matches[f"{name}size"][row]))
                for name in ("", "text_", "json_")
            )
            yield row, FoundImage(shard=shard, data=data or b"", text=text, json=json)

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _stream(self, shard: str) -> IO[bytes]:
        if shard not in self._open:
            if len(self._open) == _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1][0].close()
            stack = ExitStack()
            self._open[shard] = (stack, stack.enter_context(storage.open_read(shard)))
        self._open.move_to_end(shard)
        return self._open[shard][1]

    def _read(self, shard: str, start: int, size: int) -> bytes | None:
        """Return what is at a place; nothing is at 0, where a shard begins."""
        if not start:
            return None
        stream = self._stream(shard)
        try:
            stream.seek(start)
            content = read_up_to(stream, size)
        except OverflowError:  # a place that no file has
            content = b""
        if len(content) < size:
            raise ValueError(f"{shard} has changed since its images were indexed; run again to have it indexed anew")
        return content
