"""Which embeddings are nearest to one: by comparing all of them, or by graphs of neighbours where there are very many.

Graphs are files of usearch beside the rows, and nothing but a cache: they hold rounded embeddings by the ids of
their rows, propose candidates, and can be made anew at any time. Scores are those of the stored embeddings.

Each graph has some of the rows, and one thread makes it: of very many, a graph of all finds less where more pictures
are alike than there are candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event, Lock
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.vectors import Vectors
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

GRAPHS = "neighbours-*.usearch"
"""The files of the graphs."""

# Compared in 32 bits beside those that are wanted: in 16, neighbours may change places.
_SPARE = 32
# Of embeddings that are compared although they do not lie side by side, so many are copied at once.
_GATHERED = 2048
# Rows that are compared before other threads have even started.
_IN_ONE_THREAD = 1024
# Candidates of a graph for every answer; the stored embeddings then say which are the nearest.
_CANDIDATES = 4
_STALE = 0.2

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Places in a snapshot, the nearest first, and their cosine similarities."""


@attrs.frozen(kw_only=True)
class GraphSizes:
    """From how many embeddings on graphs are made, and how large they are.

    Args:
        exact: so many are compared without any graph; of 512 numbers, 200,000 in some 35 ms on one core.
        largest: the most rows of a graph. Half a million vectors are searched in 2.9 ms in one graph, in 6.6 ms in two,
            and in 14 ms in five; it takes as long to make one as to make two.
        added: rows that are added before it is asked whether to stop.
        candidates: the least that graphs propose for a query. With 512, the ten nearest of 100,000 vectors without any
            clusters were found in 99.3 % of the cases, with 128 in 94.8 %.
    """

    exact: int = 200_000
    largest: int = 500_000
    added: int = 4096
    candidates: int = 512


def nearest_of(vectors: Vectors, places: NDArray[np.int64] | None, query: NDArray[np.float32], k: int) -> Found:
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
    candidates = _likely(vectors, places, query, k + _SPARE)
    # Row by row, so that a score does not depend on which others there are.
    scores = np.einsum("ij,j->i", vectors[candidates].astype(np.float32), query)
    best = np.lexsort((candidates, -scores))[:k]
    return candidates[best], scores[best]


def _likely(
    vectors: Vectors, places: NDArray[np.int64] | None, query: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Return the places of the embeddings that are nearest to a query in 16 bits; of equal ones, the first."""
    num_all = len(vectors) if places is None else len(places)
    if count >= num_all:
        return np.arange(num_all) if places is None else places
    with needed("a search", "collections"):
        from usearch.index import search

    def nearest(some: NDArray[np.float16]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        threads = 1 if len(some) <= _IN_ONE_THREAD else torch.get_num_threads()
        found = search(some, query.astype(np.float16), min(count, len(some)), "ip", exact=True, threads=threads)
        return np.asarray(found.keys).astype(np.int64), np.asarray(found.distances)

    if places is None and isinstance(vectors, np.ndarray):
        return nearest(vectors)[0]
    places = np.arange(num_all) if places is None else places
    # A block that stays in the processor's cache: to copy all of them takes longer than to compare them.
    blocks = [places[start : start + _GATHERED] for start in range(0, len(places), _GATHERED)]
    found = [(block, *nearest(vectors[block])) for block in blocks]
    chosen = np.concatenate([block[keys] for block, keys, _ in found])
    distances = np.concatenate([one for *_, one in found])
    return chosen[np.lexsort((chosen, distances))[:count]]


class NeighbourGraphs:
    """The graphs of the embeddings of an index.

    Args:
        graphs: of usearch; their keys are ids of rows.
        snapshot: what they are asked about.
        least: candidates for a query.
    """

    def __init__(self, graphs: Sequence[Any], snapshot: Snapshot, *, least: int) -> None:
        self._graphs = graphs
        self._snapshot = snapshot
        self._least = least
        self._missing = np.flatnonzero(~np.isin(snapshot.ids, _ids(graphs), assume_unique=True))

    @property
    def num_missing(self) -> int:
        """How many embeddings are in none; these are compared one by one."""
        return len(self._missing)

    def nearest(self, query: NDArray[np.float32], k: int) -> Found:
        """Return the nearest embeddings; some few of a hundred may be others than the very nearest.

        Args:
            query: of unit length.
            k: how many.
        """
        return self.nearest_to_each(query[None], k, num_candidates=max(_CANDIDATES * k, self._least))[0]

    def nearest_to_each(self, queries: NDArray[np.float32], k: int, *, num_candidates: int) -> list[Found]:
        """Return the nearest embeddings of several queries, which are looked for in as many threads as PyTorch has.

        Shape:
            queries: (queries, dim).

        Args:
            queries: of unit length.
            k: how many for each.
            num_candidates: how many the graphs propose for each; with more, less is missed, and it takes longer.
        """
        found = [
            graph.search(queries, min(num_candidates, len(graph)), threads=torch.get_num_threads())
            for graph in self._graphs
        ]
        # Of one query, usearch gives rows. Places that it has nothing for are at the greatest distance.
        ids = np.concatenate([np.atleast_2d(one.keys) for one in found], axis=1).astype(np.int64)
        distances = np.concatenate([np.atleast_2d(one.distances) for one in found], axis=1)
        nearest_first = np.argsort(distances, axis=1, kind="stable")[:, :num_candidates]
        chosen = np.take_along_axis(ids, nearest_first, axis=1)
        return [self._best(row, query, k) for row, query in zip(chosen, queries, strict=True)]

    def _best(self, ids: NDArray[np.int64], query: NDArray[np.float32], k: int) -> Found:
        """Return the nearest among the candidates that graphs propose, and what is in no graph."""
        places = np.searchsorted(self._snapshot.ids, ids)
        places = places[places < len(self._snapshot)]
        # Rows that were removed since are in the graphs still.
        places = places[np.isin(self._snapshot.ids[places], ids)]
        candidates = np.unique(np.concatenate([places, self._missing]))
        if len(candidates) < min(k, len(self._snapshot)):
            return nearest_of(self._snapshot.vectors, None, query, k)
        return nearest_of(self._snapshot.vectors, candidates, query, k)


def open_graphs(folder: Path, snapshot: Snapshot, *, sizes: GraphSizes = GraphSizes()) -> NeighbourGraphs | None:
    """Return the graphs of an index, or None where there are none that can be used.

    Args:
        folder: of the index.
        snapshot: of it.
        sizes: of graphs.
    """
    if len(snapshot) <= sizes.exact:
        return None
    graphs = [graph for file in _files(folder) if (graph := _opened(file, snapshot)) is not None]
    return NeighbourGraphs(graphs, snapshot, least=sizes.candidates) if graphs else None


def renew_graphs(
    folder: Path, snapshot: Snapshot, *, sizes: GraphSizes = GraphSizes(), show_progress: bool = True
) -> None:
    """Bring the graphs of an index up to date, if it has enough pictures for any; only the writer of the index may.

    Args:
        folder: of the index.
        snapshot: of it.
        sizes: of graphs.
        show_progress: whether to show how far it is.

    Raises:
        OSError: if they cannot be written.
    """
    if len(snapshot) <= sizes.exact:
        _remove(_files(folder))
        return
    try:
        files = _files(folder)
        opened = ((file, _opened(file, snapshot)) for file in files)
        held = {file: _ids([graph]) for file, graph in opened if graph is not None}
        known = np.concatenate([np.empty(0, np.int64), *held.values()])
        if np.count_nonzero(~np.isin(known, snapshot.ids)) > _STALE * len(snapshot):
            held, known = {}, known[:0]
        _remove(file for file in files if file not in held)
        new = np.flatnonzero(~np.isin(snapshot.ids, known))
        shares = _shared_out(new, {file: len(ids) for file, ids in held.items()}, folder, sizes.largest)
        _fill_all(shares, snapshot, added=sizes.added, show_progress=show_progress)
    except ImportError as error:
        logger.warning("every search compares all of %d pictures: %s", len(snapshot), error)


def remove_graphs(folder: Path) -> None:
    """Remove the graphs of an index, as those of another space; only the writer of the index may.

    Args:
        folder: of the index.
    """
    _remove(_files(folder))


Share = tuple[Path, NDArray[np.int64]]
"""The file of a graph, and the places of the rows that it gets."""


def _shared_out(new: NDArray[np.int64], held: Mapping[Path, int], folder: Path, largest: int) -> list[Share]:
    """Return which graph gets which rows: those that have room first, by their numbers of rows, then further ones."""
    shares = []
    for file, size in held.items():
        if size < largest and len(new):
            shares.append((file, new[: largest - size]))
            new = new[largest - size :]
    further = (file for number in count() if (file := folder / f"neighbours-{number:04d}.usearch") not in held)
    return shares + [(next(further), new[start : start + largest]) for start in range(0, len(new), largest)]


def _fill_all(shares: Sequence[Share], snapshot: Snapshot, *, added: int, show_progress: bool) -> None:
    """Add rows to graphs, several of these at once; whoever is stopped keeps what was added."""
    stop, lock = Event(), Lock()
    total = sum(len(places) for _, places in shares)
    shown = console(shown=show_progress and total > 0)
    with (
        Progress("joining neighbours", total=total, unit="pictures", console=shown) as bar,
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):

        def advance(count: int) -> bool:
            with lock:
                bar.advance(count)
            return not stop.is_set()

        try:
            for filled in [pool.submit(_fill, *share, snapshot, added, advance) for share in shares]:
                filled.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fill(
    path: Path, places: NDArray[np.int64], snapshot: Snapshot, added: int, advance: Callable[[int], bool]
) -> None:
    """Add rows to the graph in a file and write it, with some of them where it is stopped."""
    graph = _opened(path, snapshot) if path.exists() else None
    graph = _empty(snapshot) if graph is None else graph
    for start in range(0, len(places), added):
        some = places[start : start + added]
        # Where several threads add to a graph of usearch, some of its rows are never found, which is known there.
        graph.add(snapshot.ids[some].astype(np.uint64), snapshot.vectors[some].astype(np.float32), threads=1)
        if not advance(len(some)):
            break
    with storage.atomic_file(path) as file:
        try:
            graph.save(str(file))
        except RuntimeError as error:  # it says nothing of the system's errors
            raise OSError(f"{path} cannot be written ({error}); if the disk is full, make room") from error


def _ids(graphs: Iterable[Any]) -> NDArray[np.int64]:
    """Return the ids of the rows that graphs have."""
    ids = [np.asarray(graph.keys).astype(np.int64) for graph in graphs if len(graph)]
    return np.concatenate([np.empty(0, np.int64), *ids])


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(GRAPHS))


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _empty(snapshot: Snapshot) -> Any:
    """Return a graph without embeddings.

    Rounded to 8 bits, lengths still differ by so little that the inner product finds what the cosine finds, in about
    half of the time, when a graph is made and when it is searched. Half of the expansion makes it in half of the
    time, and misses twice as many; 32 neighbours each are slower, and find no more; vectors that are scaled to all of
    the 8 bits find no more either.
    """
    with needed("a graph of neighbours", "collections"):
        from usearch.index import Index
    return Index(ndim=snapshot.vectors.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=128)


def _opened(file: Path, snapshot: Snapshot) -> Any | None:
    """Return the graph in a file, if it is whole and of embeddings like these."""
    graph = _empty(snapshot)
    try:
        graph.load(str(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise_machine_fault(error)
        logger.warning("%s is not used, and made anew by the next mobileclip index: %s", file, error)
        return None
    return graph if graph.ndim == snapshot.vectors.shape[1] else None
