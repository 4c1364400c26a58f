"""Vectors in clusters, so that near ones are looked for among few: spherical k-means on a sample of them.

Source: SemDeDup (arXiv 2303.09540) looks for near duplicates within clusters of k-means. Here every vector is in its
two nearest clusters, so that pairs on both sides of a border meet as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.buckets import Buckets, num_buckets_for
from mobileclip.progress import track

Vectors = npt.NDArray[np.float16]

NUM_NEAREST = 2
_ITERATIONS = 10
# Of a cluster, vectors that its centre is found by; and of all of them together, bytes in memory.
_TRAINED_ON, _TRAINED_BYTES = 256, 2**32
_ROWS = 4096
_MEMBER = np.dtype([("cluster", "i4"), ("index", "i8")])


class VectorTable:
    """The vectors of many files as one table, read from the disk as they are used.

    Args:
        parts: the files' arrays, (rows, D) each.
    """

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._starts[-1])

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self._parts[0].shape[1])

    def rows(self, indices: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """Return some vectors.

        Shape:
            (indices, D), float32.

        Args:
            indices: in ascending order.
            device: where they go.
        """
        places = np.searchsorted(self._starts, indices, side="right") - 1
        found = [self._parts[place][indices[places == place] - self._starts[place]] for place in np.unique(places)]
        return torch.from_numpy(np.concatenate(found)).to(device).float()

    def blocks(self, device: torch.device, *, title: str) -> Iterator[Tensor]:
        """Yield all vectors in order, some thousands at a time, showing progress."""
        for part in track(self._parts, total=len(self._parts), title=title, unit="shards"):
            for start in range(0, len(part), _ROWS):
                yield torch.from_numpy(np.array(part[start : start + _ROWS])).to(device).float()


def find_centres(
    table: VectorTable, *, num_clusters: int, device: torch.device, seed: int, most_bytes: int = _TRAINED_BYTES
) -> Tensor:
    """Return the centres of clusters, as unit vectors.

    Shape:
        (clusters, D).

    Args:
        table: the vectors.
        num_clusters: at most as many as there are vectors.
        device: where it is computed.
        seed: of the choice of the vectors that are clustered, and of the first centres.
        most_bytes: of the vectors that are clustered; one for each cluster is taken in any case.
    """
    generator = np.random.default_rng(seed)
    held = max(num_clusters, most_bytes // (4 * table.dim))
    count = min(len(table), _TRAINED_ON * num_clusters, held)
    chosen = np.sort(generator.choice(len(table), size=count, replace=False)).astype(np.int64)
    vectors = table.rows(chosen, device)
    centres = vectors[torch.from_numpy(generator.choice(count, size=num_clusters, replace=False)).to(device)]
    for _ in track(range(_ITERATIONS), total=_ITERATIONS, title="clustering", unit="rounds"):
        nearest = torch.cat([(block @ centres.T).argmax(1) for block in torch.split(vectors, _ROWS)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        is_empty = torch.bincount(nearest, minlength=num_clusters) == 0
        # An empty cluster begins anew at some vector.
        sums[is_empty] = vectors[torch.from_numpy(generator.integers(count, size=int(is_empty.sum()))).to(device)]
        centres = F.normalize(sums, dim=1)
    return centres


def members_of_clusters(
    table: VectorTable, centres: Tensor, *, device: torch.device
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the indices, in ascending order, of the vectors that have each cluster among their nearest ones.

    Args:
        table: the vectors.
        centres: (clusters, D).
        device: where it is computed.
    """
    num_nearest = min(NUM_NEAREST, len(centres))
    num_buckets = num_buckets_for(num_nearest * len(table), _MEMBER.itemsize)
    per_bucket = -(-len(centres) // num_buckets)
    with Buckets(_MEMBER, num_buckets) as buckets:
        start = 0
        for block in table.blocks(device, title="assigning"):
            nearest = (block @ centres.T).topk(num_nearest, dim=1).indices.cpu().numpy().astype(np.int32).reshape(-1)
            members = np.empty(len(nearest), _MEMBER)
            members["cluster"], members["index"] = nearest, start + np.arange(len(nearest)) // num_nearest
            buckets.add(members, nearest // per_bucket)
            start += len(block)
        for number, bucket in enumerate(buckets.drain()):
            ordered = bucket[np.argsort(bucket["cluster"], kind="stable")]
            clusters = np.arange(number * per_bucket, min((number + 1) * per_bucket, len(centres)) + 1)
            for first, last in pairwise(np.searchsorted(ordered["cluster"], clusters)):
                yield ordered["index"][first:last]
