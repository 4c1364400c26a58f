"""The nearest of many embeddings: all compared, or proposed by a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

GRAPHS = "neighbours.usearch"
# More than are asked for are compared in 32 bits.
_SPARE = 32
_CANDIDATES, _STALE = 4, 0.2

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


@attrs.frozen(kw_only=True)
class GraphSizes:
    """From how many pictures on there is a graph, rows added at once, and candidates it gives at least."""

    exact: int = 200_000
    added: int = 4096
    candidates: int = 512


def nearest_of(
    vectors: NDArray[np.float16], places: NDArray[np.int64] | None, query: NDArray[np.float32], k: int
) -> Found:
    """Return the places of the nearest, nearest first, of equal ones the first, and their cosines."""
    candidates = np.arange(len(vectors)) if places is None else places
    if len(candidates) > k + _SPARE:
        with needed("a search", "collections"):
            from usearch.index import search
        some = vectors if places is None else vectors[places]
        found = search(some, query.astype(np.float16), k + _SPARE, "ip", exact=True, threads=torch.get_num_threads())
        candidates = candidates[np.asarray(found.keys).astype(np.int64)]
    scores = np.einsum("ij,j->i", vectors[candidates].astype(np.float32), query)
    best = np.lexsort((candidates, -scores))[:k]
    return candidates[best], scores[best]


class NeighbourGraphs:
    """A graph that proposes neighbours, which are compared with those that it has not."""

    def __init__(self, graph: Any, snapshot: Snapshot, *, least: int) -> None:
        self._graph, self._snapshot, self._least = graph, snapshot, least
        self._missing = np.flatnonzero(~np.isin(snapshot.ids, _ids(graph), assume_unique=True))

    @property
    def num_missing(self) -> int:
        """Pictures that the graph has not."""
        return len(self._missing)

    def nearest(self, query: NDArray[np.float32], k: int) -> Found:
        """Return what `nearest_of` would, nearly always."""
        return self.nearest_to_each(query[None], k, num_candidates=max(_CANDIDATES * k, self._least))[0]

    def nearest_to_each(self, queries: NDArray[np.float32], k: int, *, num_candidates: int) -> list[Found]:
        """Return the nearest to each of several queries."""
        count = min(num_candidates, len(self._graph))
        found = self._graph.search(queries, count, threads=torch.get_num_threads())
        return [self._best(row, query, k) for row, query in zip(np.atleast_2d(found.keys), queries, strict=True)]

    def _best(self, ids: NDArray[Any], query: NDArray[np.float32], k: int) -> Found:
        places = np.flatnonzero(np.isin(self._snapshot.ids, ids.astype(np.int64)))
        candidates = np.union1d(places, self._missing)
        is_short = len(candidates) < min(k, len(self._snapshot))
        return nearest_of(self._snapshot.vectors, None if is_short else candidates, query, k)


def open_graphs(folder: Path, snapshot: Snapshot, *, sizes: GraphSizes = GraphSizes()) -> NeighbourGraphs | None:  # noqa: B008
    """Return the graph of an index, if it needs one and has it."""
    graph = _opened(folder / GRAPHS, snapshot) if len(snapshot) > sizes.exact else None
    return None if graph is None else NeighbourGraphs(graph, snapshot, least=sizes.candidates)


def renew_graphs(
    folder: Path,
    snapshot: Snapshot,
    *,
    sizes: GraphSizes = GraphSizes(),  # noqa: B008
    show_progress: bool = True,
) -> None:
    """Bring the graph of an index up to date; what was added is kept when it is stopped."""
    file = folder / GRAPHS
    if len(snapshot) <= sizes.exact:
        file.unlink(missing_ok=True)
        return
    try:
        graph = _opened(file, snapshot)
        if graph is None or np.count_nonzero(~np.isin(_ids(graph), snapshot.ids)) > _STALE * len(snapshot):
            graph = _empty(snapshot)
    except ImportError as error:
        logger.warning("every search compares all of %d pictures: %s", len(snapshot), error)
        return
    new = np.flatnonzero(~np.isin(snapshot.ids, _ids(graph)))
    shown = console(shown=show_progress and len(new) > 0)
    try:
        with Progress("joining neighbours", total=len(new), unit="pictures", console=shown) as bar:
            for start in range(0, len(new), sizes.added):
                some = new[start : start + sizes.added]
                graph.add(
                    snapshot.ids[some].astype(np.uint64), snapshot.vectors[some].astype(np.float32), threads=_threads()
                )
                bar.advance(len(some))
    finally:
        with storage.atomic_file(file) as path:
            graph.save(str(path))


def remove_graphs(folder: Path) -> None:
    """Remove the graph of an index."""
    (folder / GRAPHS).unlink(missing_ok=True)


def _threads() -> int:
    return 1  # usearch loses rows when several threads add to one graph


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
        logger.warning("%s is not used, and made anew by the next mobileclip index: %s", file, error)
        return None
    return graph if graph.ndim == snapshot.vectors.shape[1] else None
