"""Which image belongs to which sample: tables joined by the hash of a name, in buckets that fit into memory.

Names and places are written to buckets by the leading bits of their hash. Arrow joins each bucket's two tables, and
what it finds goes to buckets by the sample's shard. So a billion of each are read and written a few times from start to
end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.data.buckets import Buckets, Records, leading_bits, num_buckets_for, runs
from mobileclip.datasets.joining.index import NAME, NAMES, PLACE, AboutShard, ImageIndex, read_records
from mobileclip.datasets.sources.tables import number_column, read_numbers
from mobileclip.progress import Progress
from mobileclip.strict import strict

MATCH = np.dtype([("source", "u4"), ("order", "u4"), ("shard", "u4"), *PLACE.descr])
"""A sample, by the number of its shard and its place in it, and its image, by the number of its shard and its place."""

_ASK = np.dtype([("source", "u4"), ("order", "u4"), *NAME.descr])
_IMAGE = np.dtype([("shard", "u4"), *PLACE.descr])
# Arrays of so many bytes, of which a few are held at once.
_BUCKET_BYTES = 2**24


@attrs.frozen(kw_only=True, field_transformer=strict)
class MatchCounts:
    """Counts of matched images and samples over all reinforced shards.

    Args:
        keys: number of different names of images.
        repeated_keys: of them, that have several images.
        asked: samples that have an image.
        used_keys: names of images that samples have.
    """

    keys: int = 0
    repeated_keys: int = 0
    asked: int = 0
    used_keys: int = 0

    def __add__(self, other: MatchCounts) -> MatchCounts:
        """Return the sums."""
        return MatchCounts(**{name: value + getattr(other, name) for name, value in attrs.asdict(self).items()})


class Matches:
    """The images of the samples of every shard.

    Args:
        index: of the images.
        names: what is known of the names of each reinforced shard's samples, in order.
        wanted: whether the matches of each are needed; the others are counted alone.
        scratch: folder for what does not fit into memory, on this machine.
        progress: is told of every shard that is read.
        bucket_bytes: of an array in memory.
    """

    def __init__(
        self,
        index: ImageIndex,
        names: Sequence[AboutShard],
        wanted: npt.NDArray[np.bool_],
        *,
        scratch: Path,
        progress: Progress,
        bucket_bytes: int = _BUCKET_BYTES,
    ) -> None:
        self.counts = MatchCounts()
        self.num_scratch_bytes = 0
        num_asks = sum(about.num_records for about in names)
        num_bytes = max(index.num_images * _IMAGE.itemsize, num_asks * _ASK.itemsize)
        num_buckets = num_buckets_for(num_bytes, 1, bucket_bytes=bucket_bytes)
        held_bytes = 2 * bucket_bytes
        self._num_sources = max(1, len(names))
        num_match_buckets = min(self._num_sources, num_buckets_for(num_asks, MATCH.itemsize, bucket_bytes=bucket_bytes))
        self._matches = Buckets(MATCH, num_match_buckets, folder=scratch, held_bytes=held_bytes)
        with (
            Buckets(_IMAGE, num_buckets, folder=scratch, held_bytes=held_bytes) as images,
            Buckets(_ASK, num_buckets, folder=scratch, held_bytes=held_bytes) as asks,
        ):
            for number, part in enumerate(index.parts()):
                images.add(with_fields(_IMAGE, part, shard=number), leading_bits(part["high"], num_buckets))
                progress.advance(count=len(part))
            for number, about in enumerate(names):
                part = read_records(index.folder, NAMES, about)
                ask = with_fields(_ASK, part, source=number, order=np.arange(len(part)))
                ask = ask[(part["high"] != 0) | (part["low"] != 0)]
                asks.add(ask, leading_bits(ask["high"], num_buckets))
                progress.advance(count=len(part))
            self.num_scratch_bytes += images.num_written_bytes + asks.num_written_bytes
            for some_images, some_asks in zip(images.drain(), asks.drain(), strict=True):
                self._match(some_images, some_asks, wanted)
        self.num_scratch_bytes += self._matches.num_written_bytes

    def by_source(self) -> Iterator[tuple[int, Records]]:
        """Yield, once, the matches of every shard that is wanted and has any: its number, and records in order."""
        for bucket in self._matches.drain():
            ordered = bucket[np.lexsort((bucket["order"], bucket["source"]))]
            for number, start, end in runs(ordered["source"]):
                yield number, ordered[start:end]

    def write(self, path: Path) -> dict[int, tuple[int, int]]:
        """Write all matches to a file, shard by shard, and return by a shard's number where its own begin and end.

        Args:
            path: of the file, which `read_matches` reads a part of.
        """
        extents, start = {}, 0
        with path.open("wb") as stream:
            for number, own in self.by_source():
                own.tofile(stream)
                extents[number] = (start, start + len(own))
                start += len(own)
        return extents

    def close(self) -> None:
        """Remove what was written."""
        self._matches.close()

    def _match(self, images: Records, asks: Records, wanted: npt.NDArray[np.bool_]) -> None:
        place, counts = match_names(images, asks)
        self.counts += counts
        if not len(wanted):
            return
        found = (place >= 0) & wanted[asks["source"]]
        some = asks[found]
        match = with_fields(MATCH, images[place[found]], source=some["source"], order=some["order"])
        self._matches.add(match, match["source"].astype(np.int64) * self._matches.num_buckets // self._num_sources)


def read_matches(path: Path, extent: tuple[int, int]) -> Records:
    """Return matches from a file.

    Args:
        path: of a file that `Matches.write` has written.
        extent: where they begin and end, in records.
    """
    start, end = extent
    return np.fromfile(path, MATCH, count=end - start, offset=start * MATCH.itemsize)


def match_names(images: Records, asks: Records) -> tuple[npt.NDArray[np.int64], MatchCounts]:
    """Return for every sample the number of the first image of its name, or -1, and how many there are.

    Args:
        images: in the order in which they count.
        asks: samples.
    """
    import pyarrow as pa

    keys = list(NAME.names or ())

    def table(records: Records, number: str) -> pa.Table:
        columns = [*(records[name] for name in keys), np.arange(len(records))]
        return pa.Table.from_arrays([number_column(one) for one in columns], [*keys, number])

    first = table(images, "image").group_by(keys, use_threads=False).aggregate([("image", "min"), ("image", "count")])
    found = table(asks, "ask").join(first, keys, join_type="inner", use_threads=False)
    whole = np.dtype(np.int64)
    image = read_numbers(found["image_min"], whole)
    place = np.full(len(asks), -1, np.int64)
    place[read_numbers(found["ask"], whole)] = image
    counts = MatchCounts(
        keys=len(first),
        repeated_keys=int((read_numbers(first["image_count"], whole) > 1).sum()),
        asked=len(found),
        used_keys=len(np.unique(image)),
    )
    return place, counts


def with_fields(dtype: np.dtype[np.void], records: Records, **fields: npt.ArrayLike) -> Records:
    """Return records converted to another type, with the values of the fields that are new."""
    found = np.empty(len(records), dtype)
    for name in dtype.names or ():
        found[name] = fields[name] if name in fields else records[name]
    return found


_NUM_NAMED = 10
_HASHED = np.dtype([("sha256", "u8"), *NAME.descr, ("shard", "u4"), ("row", "u4"), ("size", "u4")])


@attrs.frozen(kw_only=True, field_transformer=strict)
class Placeholder:
    """One picture that stands under many keys.

    Args:
        sha256: the first 16 digits of its SHA-256.
        num_keys: number of keys that it stands under.
        num_bytes: of the encoded image.
        example: one of the keys; of the most frequent pictures alone.
        shard: where that one is.
    """

    sha256: str
    num_keys: int
    num_bytes: int
    example: str
    shard: str

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.num_keys:,} keys  sha256 {self.sha256}...  {self.num_bytes:,} bytes  such as {self.example} in "
            f"{self.shard}"
        )


def find_placeholders(index: ImageIndex, threshold: int, scratch: Path) -> tuple[Placeholder, ...]:
    """Return the pictures that stand under `threshold` or more keys, the most frequent first.

    Args:
        index: of the images, with their hashes.
        threshold: at least 2, or 0 for none.
        scratch: folder for what does not fit into memory, on this machine.

    Raises:
        ValueError: if records of the index are gone or damaged.
    """
    if not threshold:
        return ()
    num_buckets = num_buckets_for(index.num_images, _HASHED.itemsize, bucket_bytes=_BUCKET_BYTES)
    found: list[tuple[Placeholder, int, int]] = []
    with Buckets(_HASHED, num_buckets, folder=scratch) as images:
        for number, part in enumerate(index.parts()):
            some = with_fields(_HASHED, part, shard=number, row=np.arange(len(part)))
            images.add(some, leading_bits(some["sha256"], num_buckets))
        for bucket in images.drain():
            values, places, counts = np.unique(bucket["sha256"], return_inverse=True, return_counts=True)
            often = bucket[counts[places] >= threshold]
            ordered = often[np.argsort(often["sha256"], kind="stable")]
            values, starts, counts = np.unique(ordered["sha256"], return_index=True, return_counts=True)
            for place in range(len(values)):
                same = ordered[starts[place] : starts[place] + counts[place]]
                num_keys = len(np.unique(same[["high", "low"]]))
                if num_keys >= threshold:
                    placeholder = Placeholder(
                        sha256=f"{int(values[place]):016x}",
                        num_keys=num_keys,
                        num_bytes=int(same["size"][0]),
                        example="",
                        shard=index.shards[same["shard"][0]].shard,
                    )
                    found.append((placeholder, int(same["shard"][0]), int(same["row"][0])))
    found.sort(key=lambda one: (-one[0].num_keys, one[0].sha256))
    return tuple(
        attrs.evolve(one, example=index.name_at(shard, row)) if rank < _NUM_NAMED else one
        for rank, (one, shard, row) in enumerate(found)
    )
