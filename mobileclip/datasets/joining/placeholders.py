"""Finds placeholders: one picture under many keys, as servers send for images that they no longer have."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np

from mobileclip.data.buckets import Buckets, leading_bits, num_buckets_for
from mobileclip.datasets.joining.image_index import ImageIndex
from mobileclip.datasets.joining.matching import with_fields
from mobileclip.datasets.joining.records import NAME
from mobileclip.strict import strict

_NUM_NAMED = 10
_IMAGE = np.dtype([("sha256", "u8"), *NAME.descr, ("shard", "u4"), ("row", "u4"), ("size", "u4")])


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
    num_buckets = num_buckets_for(index.num_images, _IMAGE.itemsize)
    found: list[tuple[Placeholder, int, int]] = []
    with Buckets(_IMAGE, num_buckets, folder=scratch) as images:
        for number, part in enumerate(index.parts()):
            some = with_fields(_IMAGE, part, shard=number, row=np.arange(len(part)))
            images.add(some, leading_bits(some["sha256"], num_buckets))
        for bucket in images.drain():
            ordered = bucket[np.argsort(bucket["sha256"], kind="stable")]
            values, starts, counts = np.unique(ordered["sha256"], return_index=True, return_counts=True)
            for place in np.flatnonzero(counts >= threshold):
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
