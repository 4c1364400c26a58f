"""Which embeddings are nearest to one: by comparing all of them, or by a graph of neighbours where there are very many.

The graph is a file of usearch beside the segments, and nothing but a cache: it holds rounded embeddings by the ids of
their rows, proposes candidates, and can be made anew at any time. Scores are those of the stored embeddings.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.extras import needed
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

GRAPH = "neighbours.usearch"

EXACT_ROWS = 200_000
"""So many embeddings of 512 numbers are compared in some 35 ms on one core; with more, a graph is made."""

# Compared in 32 bits beside those that are wanted: in 16, neighbours may change places.
_SPARE = 32
# Candidates for every answer, and at least; the stored embeddings then say which are the nearest. With 512, the ten
# nearest of 100,000 vectors without any clusters were found in 99.3 % of the cases, with 128 in 94.8 %.
_CANDIDATES, _LEAST_CANDIDATES = 4, 512
_STALE = 0.2
_ADDED = 4096
_SECONDS_BETWEEN_WRITES = 600.0

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Places in a snapshot, the nearest first, and their cosine similarities."""


def nearest_of(
    vectors: NDArray[np.float16], places: NDArray[np.int64] | None, query: NDArray[np.float32], k: int
) -> Found:
    """Return the nearest of some embeddings, all of which are compared.

    They are compared with the query in 16 bits, and the best of them once more in 32.

    Args:
        vectors: of unit length.
        places: of those that may be found; None for all.
        query: of unit length.
        k: how many.

    Raises:
        ImportError: if usearch is not installed.
    """
    chosen = vectors if places is None else vectors[places]
    candidates = _likely(chosen, query, min(k + _SPARE, len(chosen)))
    # Row by row, so that a score does not depend on which others there are.
    scores = np.einsum("ij,j->i", chosen[candidates].astype(np.float32), query)
    best = np.lexsort((candidates, -scores))[:k]
    found = candidates[best]
    return (found if places is None else places[found]), scores[best]


def _likely(vectors: NDArray[np.float16], query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the places of the embeddings that are nearest to a query in 16 bits, in any order."""
    if count == len(vectors):
        return np.arange(count)
    with needed("a search", "collections"):
        from usearch.index import search
    wanted = query.astype(np.float16)
    found = search(vectors, wanted, count, "ip", exact=True, threads=torch.get_num_threads())
    return np.asarray(found.keys).astype(np.int64)


class NeighbourGraph:
    """A graph of the embeddings of an index.

    Args:
        index: of usearch; its keys are ids of rows.
        snapshot: what it is asked about.
    """

    def __init__(self, index: Any, snapshot: Snapshot) -> None:
        self._index = index
        self._snapshot = snapshot
        known = np.sort(np.asarray(index.keys).astype(np.int64)) if len(index) else np.empty(0, np.int64)
        self._missing = np.flatnonzero(~np.isin(snapshot.ids, known, assume_unique=True))

    @property
    def num_missing(self) -> int:
        """How many embeddings are not in it; these are compared one by one."""
        return len(self._missing)

    def nearest(self, query: NDArray[np.float32], k: int) -> Found:
        """Return the nearest embeddings; some few of a hundred may be others than the very nearest.

        Args:
            query: of unit length.
            k: how many.
        """
        wanted = min(max(_CANDIDATES * k, _LEAST_CANDIDATES), len(self._index))
        ids = np.asarray(self._index.search(query, wanted).keys).astype(np.int64) if wanted else np.empty(0, np.int64)
        places = np.searchsorted(self._snapshot.ids, ids)
        places = places[places < len(self._snapshot)]
        # Rows that were removed since are in the graph still.
        places = places[np.isin(self._snapshot.ids[places], ids)]
        candidates = np.unique(np.concatenate([places, self._missing]))
        if len(candidates) < min(k, len(self._snapshot)):
            return nearest_of(self._snapshot.vectors, None, query, k)
        return nearest_of(self._snapshot.vectors, candidates, query, k)


def open_graph(folder: Path, snapshot: Snapshot) -> NeighbourGraph | None:
    """Return the graph of an index, or None where there is none that can be used.

    Args:
        folder: of the index.
        snapshot: of it.
    """
    if len(snapshot) <= EXACT_ROWS or not (folder / GRAPH).is_file():
        return None
    index = _opened(folder, snapshot)
    return None if index is None else NeighbourGraph(index, snapshot)


def renew_graph(folder: Path, snapshot: Snapshot, *, show_progress: bool = True) -> None:
    """Bring the graph of an index up to date, if it has enough pictures for one; whoever writes to the index may.

    Args:
        folder: of the index.
        snapshot: of it.
        show_progress: whether to show how far it is.

    Raises:
        OSError: if it cannot be written.
    """
    if len(snapshot) <= EXACT_ROWS:
        (folder / GRAPH).unlink(missing_ok=True)
        return
    try:
        index = _opened(folder, snapshot) if (folder / GRAPH).is_file() else None
        known = np.asarray(index.keys).astype(np.int64) if index is not None else np.empty(0, np.int64)
        num_stale = int(np.count_nonzero(~np.isin(known, snapshot.ids)))
        if index is None or num_stale > _STALE * len(snapshot):
            index, known = _empty(snapshot), np.empty(0, np.int64)
    except ImportError as error:
        logger.warning("every search compares all of %d pictures: %s", len(snapshot), error)
        return
    new = np.flatnonzero(~np.isin(snapshot.ids, known))
    if len(new):
        _join(index, snapshot, new, folder / GRAPH, show_progress=show_progress)


def _join(index: Any, snapshot: Snapshot, new: NDArray[np.int64], path: Path, *, show_progress: bool) -> None:
    """Add embeddings to a graph and write it, now and then on the way too: of millions, it takes hours."""
    shown, written = console(shown=show_progress), time.monotonic()
    with Progress("joining neighbours", total=len(new), unit="pictures", console=shown) as bar:
        for start in range(0, len(new), _ADDED):
            places = new[start : start + _ADDED]
            index.add(snapshot.ids[places].astype(np.uint64), snapshot.vectors[places].astype(np.float32))
            bar.advance(len(places))
            if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                _write(index, path)
                written = time.monotonic()
    _write(index, path)


def _write(index: Any, path: Path) -> None:
    with storage.atomic_file(path) as file:
        index.save(str(file))


def _empty(snapshot: Snapshot) -> Any:
    """Return a graph without embeddings.

    Rounded to 8 bits, lengths still differ by so little that the inner product finds what the cosine finds, in about
    half of the time, when a graph is made and when it is searched. Half of the expansion makes it in half of the
    time, and misses twice as many; 32 neighbours each are slower, and find no more; vectors that are scaled to all of
    the 8 bits find no more either. A graph that was made with the cosine is searched and added to like any other.
    """
    with needed("a graph of neighbours", "collections"):
        from usearch.index import Index
    return Index(ndim=snapshot.vectors.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=128)


def _opened(folder: Path, snapshot: Snapshot) -> Any | None:
    """Return the graph in a file, if it is whole and of embeddings like these."""
    index = _empty(snapshot)
    try:
        index.load(str(folder / GRAPH))
    except (RuntimeError, ValueError, OSError) as error:
        logger.warning("%s is not used, and made anew by the next mobileclip index: %s", folder / GRAPH, error)
        return None
    return index if index.ndim == snapshot.vectors.shape[1] else None
