"""Images read by their place, as few at a time as fit into memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO

from mobileclip import storage
from mobileclip.data.joining.image_index import IndexedImage
from mobileclip.data.shards.files import RawSample
from mobileclip.data.shards.tar import read_up_to

Content = Mapping[int, tuple[bytes, bytes | None, bytes | None]]
"""Image, caption and JSON by the image's number in the index."""

_BYTES_AT_ONCE = 64 * 2**20
_MAX_OPEN_SHARDS = 32


def portions(
    pairs: Sequence[tuple[RawSample, IndexedImage | None]],
) -> Iterator[list[tuple[RawSample, IndexedImage | None]]]:
    """Yield the samples in portions whose images fit into memory."""
    portion: list[tuple[RawSample, IndexedImage | None]] = []
    num_bytes = 0
    for sample, image in pairs:
        size = 0 if image is None else image.size
        if portion and num_bytes + size > _BYTES_AT_ONCE:
            yield portion
            portion, num_bytes = [], 0
        portion.append((sample, image))
        num_bytes += size
    if portion:
        yield portion


class ImageReader:
    """Reads images by their place, in the order of the shards they are in, a few of which stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[ExitStack, IO[bytes]]] = OrderedDict()

    def read(self, images: Iterable[IndexedImage]) -> Content:
        """Return image, caption and JSON by the image's number.

        Raises:
            ValueError: if a shard is shorter than it was.
        """
        content: dict[int, tuple[bytes, bytes | None, bytes | None]] = {}
        for image in sorted(images, key=lambda one: (one.shard, one.start)):
            if image.number not in content:
                stream = self._stream(image.shard)
                data = _read_at(stream, image.start, image.size, image.shard)
                caption = _read_if(stream, image.text_start, image.text_size, image.shard)
                beside = _read_if(stream, image.json_start, image.json_size, image.shard)
                content[image.number] = (data, caption, beside)
        return content

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


def _read_at(stream: IO[bytes], start: int, size: int, shard: str) -> bytes:
    stream.seek(start)
    content = read_up_to(stream, size)
    if len(content) < size:
        raise ValueError(f"{shard} has changed since its images were indexed; run again to have it indexed anew")
    return content


def _read_if(stream: IO[bytes], start: int | None, size: int | None, shard: str) -> bytes | None:
    return None if start is None or size is None else _read_at(stream, start, size, shard)
