"""Images read by their place, as few at a time as fit into memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

import attrs

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.shards.files import RawSample
from mobileclip.data.shards.tar import read_up_to

_BYTES_AT_ONCE = 64 * 2**20
_MAX_OPEN_SHARDS = 32


@attrs.frozen(kw_only=True)
class Place:
    """Where an image is.

    Args:
        shard: path or address of the tar file.
        start: offset of its first byte in the shard.
        size: in bytes.
        text: offset and size of the caption beside it; zeros where there is none.
        json: likewise of the JSON beside it.
        extension: format of the image, such as jpg.
        sha256: the first 8 bytes of its SHA-256; 0 where it was indexed without.
    """

    shard: str
    start: int
    size: int
    text: tuple[int, int]
    json: tuple[int, int]
    extension: str
    sha256: int

    @staticmethod
    def of(match: Any, shards: Mapping[int, str]) -> Place:
        """Return the place that a match states.

        Args:
            match: one record.
            shards: paths of image shards by number.
        """
        return Place(
            shard=shards[int(match["shard"])],
            start=int(match["start"]),
            size=int(match["size"]),
            text=(int(match["text_start"]), int(match["text_size"])),
            json=(int(match["json_start"]), int(match["json_size"])),
            extension=IMAGE_EXTENSIONS[match["extension"]],
            sha256=int(match["sha256"]),
        )


@attrs.frozen(kw_only=True)
class FoundImage:
    """What was read of an image.

    Args:
        data: the encoded image.
        text: the caption beside it, where there is one.
        json: the JSON beside it, where there is one.
    """

    data: bytes
    text: bytes | None
    json: bytes | None


def portions(pairs: Sequence[tuple[RawSample, Place | None]]) -> Iterator[list[tuple[RawSample, Place | None]]]:
    """Yield the samples in portions whose images fit into memory."""
    portion: list[tuple[RawSample, Place | None]] = []
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

    def read(self, places: Iterable[Place]) -> dict[Place, FoundImage]:
        """Return what is at the places.

        Raises:
            ValueError: if a shard is shorter than it was.
        """
        found: dict[Place, FoundImage] = {}
        for place in sorted(places, key=lambda one: (one.shard, one.start)):
            if place not in found:
                stream = self._stream(place.shard)
                data = _read_at(stream, place.start, place.size, place.shard)
                text = _read_at(stream, *place.text, place.shard) if place.text[0] else None
                json = _read_at(stream, *place.json, place.shard) if place.json[0] else None
                found[place] = FoundImage(data=data, text=text, json=json)
        return found

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
    try:
        stream.seek(start)
        content = read_up_to(stream, size)
    except OverflowError:  # a place that no file has
        content = b""
    if len(content) < size:
        raise ValueError(f"{shard} has changed since its images were indexed; run again to have it indexed anew")
    return content
