"""Vectors in clusters, so that near ones are looked for among few: spherical k-means on a sample of them.

Source: SemDeDup (arXiv 2303.09540) looks for near duplicates within clusters of k-means. Here every vector is in its
two nearest clusters, so that pairs on both sides of a border meet as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.progress import track

Vectors = npt.NDArray[np.float16]

NUM_NEAREST = 2
_ITERATIONS = 10
_TRAINED_ON = 256
_ROWS = 4096


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


def find_centres(table: VectorTable, *, num_clusters: int, device: torch.device, seed: int) -> Tensor:
    """Return the centres of clusters, as unit vectors.

    Shape:
        (clusters, D).

    Args:
        table: the vectors.
        num_clusters: at most as many as there are vectors.
        device: where it is computed.
        seed: of the choice of the vectors that are clustered, and of the first centres.
    """
    generator = np.random.default_rng(seed)
    count = min(len(table), _TRAINED_ON * num_clusters)
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
    nearest = np.concatenate(
        [
            (block @ centres.T).topk(num_nearest, dim=1).indices.cpu().numpy().astype(np.int32)
            for block in table.blocks(device, title="assigning")
        ]
    )
    order = np.argsort(nearest.reshape(-1), kind="stable")
    stops = np.cumsum(np.bincount(nearest.reshape(-1), minlength=len(centres)))
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        yield (order[start:stop] // num_nearest).astype(np.int64)
