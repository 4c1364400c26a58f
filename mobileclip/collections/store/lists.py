"""Codes of an index in the order of cells, so that a query is compared with those of the nearest cells alone.

A file of lists is a copy of codes, and nothing but a cache: the leading bytes of all codes, the rest of all, and the
places of their embeddings, each in the order of the cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mobileclip.collections.store import vectors as files
from mobileclip.collections.store.codes import Coder, Codes, Floats, empty_codes

# Directions along which cells are told apart: with 32 and 64, as much of a million vectors of rank 130 was found.
_DIRECTIONS = 64
_ITERATIONS, _AT_ONCE = 8, 8192
# Rows that are copied at once.
_BLOCK = 65_536
_PLACE = np.dtype("<u4")

Members = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Places of embeddings in their file, rising, and the cell of each."""


@attrs.frozen(kw_only=True, eq=False)
class Cells:
    """Cells of embeddings: an embedding is in that whose centre is nearest, along some directions.

    Shape:
        directions: `(dim, few)`; centres: `(cells, few)`; starts: `(cells + 1,)`, int64.

    Source: inverted lists, Jegou et al., "Product Quantization for Nearest Neighbor Search", 2011, section IV.

    Args:
        directions: the principal ones.
        centres: of the cells.
        starts: where the codes of each cell begin in a file, and where those of the last one end.
        end: embeddings before this place are in the lists, unless they had been removed.
    """

    directions: Floats
    centres: Floats
    starts: NDArray[np.int64]
    end: int

    def __len__(self) -> int:
        """Return how many codes there are."""
        return int(self.starts[-1])

    def ranked(self, query: Floats) -> NDArray[np.int64]:
        """Return all cells, the one first whose embeddings are likely to be most similar to a query."""
        ranked: NDArray[np.int64] = np.argsort(-(self.centres @ (query @ self.directions)), kind="stable")
        return ranked

    def assigned(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Return the cells of embeddings."""
        turned = torch.from_numpy(vectors.astype(np.float32)) @ torch.from_numpy(self.directions)
        return _nearest(turned, torch.from_numpy(self.centres)).numpy()

    def written(self) -> bytes:
        """Return it as safetensors."""
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in ("directions", "centres", "starts")}
        return save({**arrays, "end": np.array([self.end])})

    @classmethod
    def read(cls, content: bytes, dim: int) -> Cells:
        """Return cells that `written` gave.

        Args:
            content: of a stranger's index, perhaps.
            dim: numbers of an embedding.

        Raises:
            ValueError: if it is none, or of other embeddings.
        """
        try:
            found = load(content)
            cells = cls(
                directions=found["directions"].astype(np.float32, copy=False),
                centres=found["centres"].astype(np.float32, copy=False),
                starts=found["starts"].astype(np.int64, copy=False),
                end=int(found["end"][0]),
            )
            count, few = cells.centres.shape
            is_whole = count > 0 and cells.directions.shape == (dim, few) and cells.starts.shape == (count + 1,)
            is_whole &= bool(np.isfinite(cells.directions).all() and np.isfinite(cells.centres).all())
            is_whole &= cells.starts[0] == 0 and bool((np.diff(cells.starts) >= 0).all()) and len(cells) <= cells.end
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"no cells of embeddings of {dim} numbers: {error}") from error
        if not is_whole:
            raise ValueError(f"no cells of embeddings of {dim} numbers: shapes or values are none of these")
        return cells


@attrs.frozen(kw_only=True, eq=False)
class Lists:
    """Codes in the order of their cells.

    Shape:
        heads: `(count, coder.head.num_bytes)`; rests: `(count, the others)`; places: `(count,)`, uint32.

    Args:
        cells: of the codes.
        heads: the bytes of codes that are compared first.
        rests: what is left of them.
        places: of their embeddings in the file of these.
        share: of the codes, so many are compared with a query.
    """

    cells: Cells
    heads: Codes
    rests: Codes
    places: NDArray[np.uint32]
    share: float

    def codes(self, rows: NDArray[np.int64]) -> Codes:
        """Return some codes as a whole."""
        return np.concatenate([self.heads[rows], self.rests[rows]], axis=1)

    def ranges(self, query: Floats, count: float) -> list[slice]:
        """Return which rows are of the cells that are nearest to a query, as many cells as have so many rows."""
        starts, ranked = self.cells.starts, self.cells.ranked(query)
        sums = np.cumsum(np.diff(starts)[ranked])
        chosen = np.sort(ranked[: 1 + int(np.searchsorted(sums, count))])
        return [slice(*one) for one in zip(starts[chosen].tolist(), starts[chosen + 1].tolist(), strict=True)]


def cells_of(sample: NDArray[np.floating[Any]], count: int, *, seed: int = 0) -> Cells:
    """Return empty cells that are fitted on some embeddings by k-means.

    Args:
        sample: of shape `(some, dim)`, as many as cells or more.
        count: how many cells.
        seed: of what is drawn.
    """
    given = torch.from_numpy(np.asarray(sample)).float()
    centred = given - given.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :_DIRECTIONS].contiguous()
    turned = given @ directions
    centres = turned[torch.randperm(len(turned), generator=torch.Generator().manual_seed(seed))[:count]]
    for _ in range(_ITERATIONS):
        cell = _nearest(turned, centres)
        sums = torch.zeros_like(centres).index_add_(0, cell, turned)
        sizes = torch.bincount(cell, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    starts = np.zeros(len(centres) + 1, np.int64)
    return Cells(directions=directions.numpy(), centres=centres.numpy(), starts=starts, end=0)


def write_lists(
    path: Path, cells: Cells, members: Members, codes: Codes, coder: Coder
) -> tuple[Cells, list[files.Sum]]:
    """Write the lists of some codes, which are on the disk when this returns, and return their cells and sums.

    Args:
        path: of the file.
        cells: that they are in.
        members: of the cells.
        codes: by their places; all of the file.
        coder: of the codes.

    Raises:
        OSError: if it cannot be written.
    """
    places, cell = members
    order = np.argsort(cell, kind="stable")
    ordered, head = places[order], coder.head.num_bytes

    def parts() -> Iterator[NDArray[Any]]:
        for some in (slice(None, head), slice(head, None)):
            for start in range(0, len(ordered), _BLOCK):
                yield codes[ordered[start : start + _BLOCK]][:, some]
        yield ordered.astype(_PLACE)

    files.write(path, parts())
    starts = np.searchsorted(cell[order], np.arange(len(cells.centres) + 1))
    kept = attrs.evolve(cells, starts=starts, end=len(codes))
    return kept, files.sums_of(_whole(path, len(order), coder), 0)


def read_lists(path: Path, cells: Cells, coder: Coder, share: float, sums: list[files.Sum]) -> Lists:
    """Return lists of a file, of which only what is looked at is read.

    Raises:
        OSError: if it is gone.
        ValueError: if it is shorter, or is not what was written.
    """
    count, head = len(cells), coder.head.num_bytes
    whole = _whole(path, count, coder)
    files.check(path, whole, sums)
    flat, middle, end = whole.reshape(-1), count * head, count * coder.num_bytes
    kind = empty_codes(coder, 0).dtype
    return Lists(
        cells=cells,
        heads=flat[:middle].view(kind).reshape(count, head),
        rests=flat[middle:end].view(kind).reshape(count, coder.num_bytes - head),
        places=flat[end:].view(_PLACE),
        share=share,
    )


def _whole(path: Path, count: int, coder: Coder) -> NDArray[np.uint8]:
    """Return the bytes of a file, as many in a row as a picture has in all of it."""
    width = coder.num_bytes + _PLACE.itemsize
    if path.stat().st_size < count * width:
        raise ValueError(f"{path} is damaged: it is shorter than its {count:,} codes")
    return np.asarray(np.memmap(path, np.uint8, mode="c", shape=(count, width)))


def _nearest(vectors: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    lengths = centres.square().sum(1) / 2
    return torch.cat([(some @ centres.T - lengths).argmax(1) for some in torch.split(vectors, _AT_ONCE)])
