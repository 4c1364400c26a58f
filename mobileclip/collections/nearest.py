"""Finds nearest embeddings by exact search, or by a neighbour graph for more than two million embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.snapshot import Snapshot
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

GRAPH = "neighbours.usearch"
"""Name of the graph file in the folder of an index."""

# Search compares all embeddings as float16, then compares the best k, and this many more, as float32.
_SPARE = 32
# Number of candidates from the graph per requested image.
_CANDIDATES = 4
# A graph is rebuilt when the number of removed images exceeds this share of the index.
_STALE = 0.2
# Number of a graph's embeddings to compare with the index, and the minimum cosine of equal embeddings: the graph stores
# int8 values, so equal embeddings have a cosine of only 0.999.
_COMPARED, _SAME = 64, 0.98

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions of images, nearest first, and the cosine similarity of each image."""


@attrs.frozen(kw_only=True)
class GraphSizes:
    """The settings of search by a neighbour graph.

    Args:
        exact: maximum number of images for exact search; above this number, search uses a graph.
        batch_size: number of images to add to the graph per batch.
        candidates: minimum number of candidates from the graph per query.
    """

    exact: int = 2_000_000
    batch_size: int = 4096
    candidates: int = 512


def exact_nearest(
    vectors: NDArray[np.float16], indices: NDArray[np.int64] | None, query: NDArray[np.float32], k: int
) -> Found:
    """Return the nearest images by exact search; images with equal scores keep their order in the index.

    Shape:
        vectors: `(images, dim)`; indices: `(candidates,)`; query: `(dim,)`.

    Args:
        vectors: embeddings of the images, of unit length.
        indices: positions of the images to search; None for all images.
        query: query embedding, of unit length.
        k: maximum number of images.
    """
    candidates = np.arange(len(vectors)) if indices is None else indices
    if len(candidates) > k + _SPARE:
        with needed("a search", "collections"):
            from usearch.index import search
        some = vectors if indices is None else vectors[indices]
        found = search(some, query.astype(np.float16), k + _SPARE, "ip", exact=True, threads=torch.get_num_threads())
        candidates = candidates[np.asarray(found.keys).astype(np.int64)]
    scores = np.einsum("ij,j->i", vectors[candidates].astype(np.float32), query)
    best = np.lexsort((candidates, -scores))[:k]
    return candidates[best], scores[best]


class NeighbourGraph:
    """An approximate neighbour graph; search also compares the query with images that the graph lacks.

    Args:
        graph: usearch index.
        snapshot: snapshot of the index.
        sizes: settings of the search.
    """

    def __init__(self, graph: Any, snapshot: Snapshot, sizes: GraphSizes) -> None:
        self._graph, self._snapshot, self._least = graph, snapshot, sizes.candidates
        self._missing = np.flatnonzero(~np.isin(snapshot.ids, _ids(graph), assume_unique=True))

    @property
    def num_missing(self) -> int:
        """Number of images that the graph lacks."""
        return len(self._missing)

    def nearest(self, query: NDArray[np.float32], k: int) -> Found:
        """Return approximately the nearest images, in the format of `exact_nearest`."""
        return self.nearest_to_each(query[None], k, num_candidates=max(_CANDIDATES * k, self._least))[0]

    def nearest_to_each(self, queries: NDArray[np.float32], k: int, *, num_candidates: int) -> list[Found]:
        """Return the nearest images for each of several queries.

        Shape:
            queries: `(queries, dim)`.

        Args:
            queries: query embeddings, of unit length.
            k: maximum number of images per query.
            num_candidates: number of candidates from the graph per query.
        """
        count = min(num_candidates, len(self._graph))
        found = self._graph.search(queries, count, threads=torch.get_num_threads())
        return [self._best(row, query, k) for row, query in zip(np.atleast_2d(found.keys), queries, strict=True)]

    def _best(self, ids: NDArray[Any], query: NDArray[np.float32], k: int) -> Found:
        known = self._snapshot.ids
        indices = np.searchsorted(known, ids.astype(np.int64))
        indices = indices[indices < len(known)]
        candidates = np.union1d(indices[np.isin(known[indices], ids.astype(np.int64))], self._missing)
        is_short = len(candidates) < min(k, len(known))
        return exact_nearest(self._snapshot.vectors, None if is_short else candidates, query, k)


def open_graph(folder: Path, snapshot: Snapshot, sizes: GraphSizes) -> NeighbourGraph | None:
    """Open the graph of an index; return None if search is exact, or if the index has no graph."""
    graph = _opened(folder / GRAPH, snapshot) if len(snapshot) > sizes.exact else None
    return None if graph is None else NeighbourGraph(graph, snapshot, sizes)


def update_graph(folder: Path, snapshot: Snapshot, sizes: GraphSizes, *, show_progress: bool = True) -> None:
    """Update the graph of an index, or remove the graph if search is exact.

    An interrupted update saves the images added so far.

    Args:
        folder: folder of the index.
        snapshot: snapshot of the index.
        sizes: settings that determine whether the index has a graph.
        show_progress: whether to show progress.

    Raises:
        OSError: if the graph cannot be written.
    """
    if len(snapshot) <= sizes.exact:
        remove_graph(folder)
        return
    try:
        graph = _opened(folder / GRAPH, snapshot)
        if graph is None or np.count_nonzero(~np.isin(_ids(graph), snapshot.ids)) > _STALE * len(snapshot):
            graph = _empty(snapshot)
    except ImportError as error:
        logger.warning("every search compares the query with all %d images: %s", len(snapshot), error)
        return
    before = len(graph)
    try:
        _add(graph, snapshot, sizes, show_progress=show_progress)
    finally:
        if len(graph) != before:
            with storage.atomic_file(folder / GRAPH) as path:
                _save(graph, path)


def build_graph(snapshot: Snapshot, sizes: GraphSizes, *, show_progress: bool = True) -> NeighbourGraph:
    """Build a graph in memory, without a file; see `update_graph`."""
    graph = _empty(snapshot)
    _add(graph, snapshot, sizes, show_progress=show_progress)
    return NeighbourGraph(graph, snapshot, sizes)


def _add(graph: Any, snapshot: Snapshot, sizes: GraphSizes, *, show_progress: bool) -> None:
    """Add the images that a graph lacks."""
    new = np.flatnonzero(~np.isin(snapshot.ids, _ids(graph)))
    shown = console(shown=show_progress and len(new) > 0)
    with Progress("building the graph", total=len(new), unit="images", console=shown) as bar:
        for start in range(0, len(new), sizes.batch_size):
            some = new[start : start + sizes.batch_size]
            # usearch loses rows if several threads add to the same graph.
            graph.add(snapshot.ids[some].astype(np.uint64), snapshot.vectors[some].astype(np.float32), threads=1)
            bar.advance(len(some))


def _save(graph: Any, path: Path) -> None:
    try:
        graph.save(str(path))
    except RuntimeError as error:  # the error has no details from the system
        raise OSError(f"{path} cannot be written ({error}); if the disk is full, free some space") from error


def remove_graph(folder: Path) -> None:
    """Remove the graph of an index, if it has one."""
    (folder / GRAPH).unlink(missing_ok=True)


def _ids(graph: Any) -> NDArray[np.int64]:
    return np.asarray(graph.keys).astype(np.int64) if len(graph) else np.empty(0, np.int64)


def _empty(snapshot: Snapshot) -> Any:
    with needed("a graph of neighbours", "collections"):
        from usearch.index import Index
    return Index(ndim=snapshot.vectors.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=128)


def _opened(file: Path, snapshot: Snapshot) -> Any | None:
    if not file.is_file():
        return None
    graph = _empty(snapshot)
    try:
        graph.load(str(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise_machine_fault(error)
        logger.warning("search does not use the graph %s; the next `mobileclip index` rebuilds it: %s", file, error)
        return None
    return graph if _is_of(graph, snapshot) else None


def _is_of(graph: Any, snapshot: Snapshot) -> bool:
    """Return whether a graph belongs to an index, and not to an earlier index in the same folder."""
    if graph.ndim != snapshot.vectors.shape[1]:
        return False
    ids = np.intersect1d(_ids(graph), snapshot.ids, assume_unique=True)
    some = ids[np.linspace(0, len(ids) - 1, min(len(ids), _COMPARED)).astype(np.int64)]
    held = np.array([np.ravel(graph.get(int(number))) for number in some], np.float32).reshape(len(some), -1)
    held /= np.maximum(np.linalg.norm(held, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    vectors = snapshot.vectors[np.searchsorted(snapshot.ids, some)].astype(np.float32)
    return bool(np.all(np.einsum("ij,ij->i", held, vectors) > _SAME))
