"""Matches images and samples by the hash of the name, in buckets that fit into memory.

`match_images` distributes names and positions over buckets by the leading bits of the name hash, sorts each bucket to
find equal names, and distributes the matches over buckets by reinforced shard. Matching a billion images and samples
takes only a few sequential passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.data.buckets import Buckets, Records, leading_bits, num_buckets_for, runs
from mobileclip.datasets.joining.index import NAME, NAMES, PLACE, PLACES, ImageIndex, ShardMetadata, read_records
from mobileclip.progress import Progress
from mobileclip.strict import strict

MATCH = np.dtype([("source", "u4"), ("order", "u4"), ("shard", "u4"), *PLACE.descr])
"""A match: shard number and order of the sample, then shard number and position of the image."""

_QUERY = np.dtype([("source", "u4"), ("order", "u4"), *NAME.descr])
_IMAGE = np.dtype([("shard", "u4"), *PLACE.descr])
_HASHED = np.dtype([("sha256", "u8"), *NAME.descr, ("shard", "u4"), ("row", "u4"), ("size", "u4")])
# Size of an array; a few arrays are in memory at the same time.
_BUCKET_BYTES = 2**24
_NUM_NAMED = 10


@attrs.frozen(kw_only=True, field_transformer=strict)
class MatchCounts:
    """Counts of matched images and samples over all reinforced shards.

    Args:
        keys: number of unique image names.
        repeated_keys: number of image names with several images.
        matched_samples: number of samples with a matching image.
        used_keys: number of image names with at least one sample.
    """

    keys: int = 0
    repeated_keys: int = 0
    matched_samples: int = 0
    used_keys: int = 0

    def __add__(self, other: MatchCounts) -> MatchCounts:
        """Return the sum of each count."""
        return MatchCounts(**{name: value + getattr(other, name) for name, value in attrs.asdict(self).items()})


@attrs.frozen(kw_only=True, field_transformer=strict)
class Placeholder:
    """An image that occurs under many keys, such as a server's "image not found" picture.

    Args:
        sha256: first 16 hexadecimal digits of the image's SHA-256.
        num_keys: number of keys of the image.
        num_bytes: number of bytes of the encoded image.
        example: one key of the image; empty except for the 10 most frequent images.
        shard: path or URL of the shard with the example.
    """

    sha256: str
    num_keys: int
    num_bytes: int
    example: str
    shard: str

    def __str__(self) -> str:
        """Return a one-line description of the placeholder."""
        return (
            f"{self.num_keys:,} keys  sha256 {self.sha256}...  {self.num_bytes:,} bytes  such as {self.example} in "
            f"{self.shard}"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class Matches:
    """The result of matching all images and samples, without the matches themselves.

    Args:
        counts: counts of images and samples.
        placeholders: placeholder images, sorted by decreasing number of keys.
    """

    counts: MatchCounts
    placeholders: tuple[Placeholder, ...]


def match_images(
    index: ImageIndex,
    names: Sequence[ShardMetadata],
    wanted: npt.NDArray[np.bool_],
    path: Path,
    *,
    threshold: int,
    progress: Progress,
    bucket_bytes: int = _BUCKET_BYTES,
) -> tuple[Matches, Mapping[int, tuple[int, int]]]:
    """Write a file with the matches of every shard, and return the counts and each shard's extent in the file.

    Args:
        index: index of the images.
        names: metadata of the name table of each reinforced shard, in the order of the shards.
        wanted: for each reinforced shard, whether to write its matches; the counts cover all shards.
        path: path of the file to write, in a folder for temporary files.
        threshold: minimum number of keys for an image to be a placeholder, at least 2; 0 skips the search for
            placeholders.
        progress: progress bar, advanced for every shard.
        bucket_bytes: upper limit on the average size of a bucket in memory, in bytes.

    Returns:
        The counts and placeholders, and a mapping from the shard number to the start and end of the shard's matches in
        the file, in records. Shards without matches have no entry.

    Raises:
        ValueError: if records of the index are missing or damaged.
    """
    num_queries, num_sources = sum(about.num_records for about in names), max(1, len(names))
    num_bytes = max(index.num_images * _IMAGE.itemsize, num_queries * _QUERY.itemsize)
    num_buckets = num_buckets_for(num_bytes, 1, bucket_bytes=bucket_bytes)
    num_match_buckets = min(num_sources, num_buckets_for(num_queries, MATCH.itemsize, bucket_bytes=bucket_bytes))
    counts, extents, start = MatchCounts(), dict[int, tuple[int, int]](), 0
    with ExitStack() as stack:

        def buckets(dtype: np.dtype[np.void], number: int) -> Buckets:
            return stack.enter_context(Buckets(dtype, number, folder=path.parent, held_bytes=bucket_bytes))

        images, queries = buckets(_IMAGE, num_buckets), buckets(_QUERY, num_buckets)
        hashed, matches = buckets(_HASHED, num_buckets), buckets(MATCH, num_match_buckets)
        for number, about in enumerate(index.shards):
            part = read_records(index.folder, PLACES, about)
            images.add(_with_fields(_IMAGE, part, shard=number), leading_bits(part["high"], num_buckets))
            if threshold:
                some = _with_fields(_HASHED, part, shard=number, row=np.arange(len(part)))
                hashed.add(some, leading_bits(part["sha256"], num_buckets))
            progress.advance(count=len(part))
        for number, about in enumerate(names):
            part = read_records(index.folder, NAMES, about)
            query = _with_fields(_QUERY, part, source=number, order=np.arange(len(part)))
            query = query[(part["high"] != 0) | (part["low"] != 0)]
            queries.add(query, leading_bits(query["high"], num_buckets))
            progress.advance(count=len(part))
        for some_images, some_queries in zip(images.drain(), queries.drain(), strict=True):
            place, found = match_names(some_images, some_queries)
            counts += found
            if len(some_queries):
                is_wanted = (place >= 0) & wanted[some_queries["source"]]
                own = some_queries[is_wanted]
                match = _with_fields(MATCH, some_images[place[is_wanted]], source=own["source"], order=own["order"])
                matches.add(match, match["source"].astype(np.int64) * num_match_buckets // num_sources)
        with path.open("wb") as stream:
            for bucket in matches.drain():
                ordered = bucket[np.lexsort((bucket["order"], bucket["source"]))]
                ordered.tofile(stream)
                extents |= {number: (start + one, start + end) for number, one, end in runs(ordered["source"])}
                start += len(ordered)
        return Matches(counts=counts, placeholders=_placeholders(index, hashed, threshold)), extents


def read_matches(path: Path, extent: tuple[int, int]) -> Records:
    """Read matches from a file written by `match_images`.

    Args:
        path: path of the file.
        extent: start and end of the matches in the file, in records.
    """
    start, end = extent
    return np.fromfile(path, MATCH, count=end - start, offset=start * MATCH.itemsize)


def match_names(images: Records, queries: Records) -> tuple[npt.NDArray[np.int64], MatchCounts]:
    """Return, for each sample, the index of the first image with the same name (-1 if none), and return the counts.

    Args:
        images: records of images, in order of precedence.
        queries: records of samples.
    """
    high, low = (np.concatenate([images[name], queries[name]]) for name in ("high", "low"))
    # The sort is stable: among equal names, the images come first, in the given order, before the samples.
    order = np.lexsort((low, high))
    high, low, is_image = high[order], low[order], order < len(images)
    starts = np.flatnonzero(np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))[: len(order)])
    sizes = np.diff(starts, append=len(order))
    num_images = np.add.reduceat(is_image, starts, dtype=np.int64) if len(order) else sizes
    is_used = (num_images > 0) & (num_images < sizes)
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(np.where(num_images > 0, order[starts], -1), sizes)
    counts = MatchCounts(
        keys=int((num_images > 0).sum()),
        repeated_keys=int((num_images > 1).sum()),
        matched_samples=int((sizes - num_images)[is_used].sum()),
        used_keys=int(is_used.sum()),
    )
    return first[len(images) :], counts


def _placeholders(index: ImageIndex, hashed: Buckets, threshold: int) -> tuple[Placeholder, ...]:
    """Return the images with at least `threshold` keys, the most frequent first."""
    found: list[tuple[int, str, Records]] = []
    for bucket in hashed.drain():
        _, places, counts = np.unique(bucket["sha256"], return_inverse=True, return_counts=True)
        often = bucket[counts[places] >= threshold]
        ordered = often[np.argsort(often["sha256"], kind="stable")]
        for value, start, end in runs(ordered["sha256"]):
            num_keys = len(np.unique(ordered[start:end][["high", "low"]]))
            if num_keys >= threshold:
                found.append((-num_keys, f"{value:016x}", ordered[start]))
    return tuple(
        Placeholder(
            sha256=sha256,
            num_keys=-key,
            num_bytes=int(one["size"]),
            example=index.name_at(int(one["shard"]), int(one["row"])) if rank < _NUM_NAMED else "",
            shard=index.shards[one["shard"]].shard,
        )
        for rank, (key, sha256, one) in enumerate(sorted(found, key=lambda entry: entry[:2]))
    )


def _with_fields(dtype: np.dtype[np.void], records: Records, **fields: npt.ArrayLike) -> Records:
    """Convert records to another dtype, with the given values for additional fields."""
    found = np.empty(len(records), dtype)
    for name in dtype.names or ():
        found[name] = fields[name] if name in fields else records[name]
    return found
