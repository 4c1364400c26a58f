"""A search of small vectors: the codes of all pictures are compared, and the best of them by the stored embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.collections.searching.neighbours import Found, nearest_of
from mobileclip.collections.store.codes import Coder, Codes, fit
from mobileclip.collections.store.database import INDEX, changing, opened
from mobileclip.collections.store.small import (
    Recall,
    SmallFile,
    append_codes,
    are_whole,
    begin_small,
    forget_small,
    note_recall,
    remove_codes_but,
    small_file,
)
from mobileclip.collections.store.snapshot import Snapshot, take_snapshot
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.vectors import Vectors
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

SHORTLIST = {"int8": 128, "int4": 256, "bits": 1024}
"""Pictures of a query that are compared by their stored embeddings, which are read from the disk."""

# Codes that are compared at once; embeddings that are coded, or multiplied, at once.
_ROWS, _BLOCK = 32_768, 8192
# Stored embeddings for every answer, where many are asked for.
_CANDIDATES = 4
# Codes are fitted on so many embeddings, and anew when there are so many times as many as then.
_FITTED, _GROWN = 16_384, 2
_QUERIES, _NEAREST = 200, 10
# By which sums of the same products may differ.
_SLACK = 1e-5


class SmallScan:
    """A search of all codes; it proposes what `NeighbourGraphs` does, also among some of the pictures.

    Args:
        snapshot: with small vectors.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        assert snapshot.small is not None, "whoever opens it has looked"
        self._snapshot, self._small = snapshot, snapshot.small
        self.shortlist = SHORTLIST[snapshot.small.coder.kind]

    @property
    def num_missing(self) -> int:
        """How many pictures have no codes yet; these are compared by their embeddings."""
        return len(self._snapshot) - len(self._small.codes)

    def nearest(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Found:
        """Return the nearest embeddings; some few of a hundred may be others than the very nearest.

        Args:
            query: of unit length.
            k: how many.
            among: places of those that may be found, rising; None for all.
        """
        return self.nearest_to_each(query[None], k, num_candidates=max(_CANDIDATES * k, self.shortlist), among=among)[0]

    def nearest_to_each(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        num_candidates: int,
        among: NDArray[np.int64] | None = None,
    ) -> list[Found]:
        """Return the nearest embeddings of several queries, of which some are compared at once.

        Shape:
            queries: `(queries, dim)`.

        Args:
            queries: of unit length.
            k: how many for each.
            num_candidates: how many the codes propose for each.
            among: see `nearest`.
        """
        found: list[Found] = []
        for start in range(0, len(queries), 16):
            some = queries[start : start + 16]
            for query, candidates in zip(some, self._proposed(some, num_candidates, among), strict=True):
                found.append(nearest_of(self._snapshot.vectors, candidates, query, k))
        return found

    def _proposed(
        self, queries: NDArray[np.float32], count: int, among: NDArray[np.int64] | None
    ) -> Iterator[NDArray[np.int64]]:
        """Yield for each query the places whose codes are nearest to it, and those that have none, rising."""
        codes, end = self._small.codes, len(self._snapshot)
        coded = len(codes) if among is None else int(np.searchsorted(among, len(codes)))
        missing = np.arange(len(codes), end) if among is None else among[coded:]

        def best(start: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            stop = min(start + _ROWS, coded)
            block: Codes = codes[start:stop] if among is None else codes[among[start:stop]]
            scores = self._small.coder.scores(block, queries).T
            return [_most(np.arange(start, stop), one, count) for one in np.ascontiguousarray(scores)]

        starts = range(0, coded, _ROWS)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            blocks = list(pool.map(best, starts) if torch.get_num_threads() > 1 else map(best, starts))
        for number in range(len(queries)):
            found = [block[number] for block in blocks]
            places = np.concatenate([np.empty(0, np.int64), *(places for places, _ in found)])
            scores = np.concatenate([np.empty(0, np.float32), *(scores for _, scores in found)])
            places = _most(places, scores, count)[0]
            yield np.concatenate([np.sort(places if among is None else among[places]), missing])


def open_scan(snapshot: Snapshot) -> SmallScan | None:
    """Return a search of small vectors, or None where fewer than half of the pictures have them."""
    if snapshot.small is None or 2 * len(snapshot.small.codes) < len(snapshot):
        return None
    return SmallScan(snapshot)


def recall_of(store: Store) -> Recall | None:
    """Return how many of the nearest pictures are found by the small vectors of an index, as it was measured."""
    if store.about.vectors == "float16" or not (store.folder / INDEX).is_file():
        return None
    known = _known(store)
    return None if known is None else known.recall


def renew_codes(store: Store, *, show_progress: bool = True) -> None:
    """Bring the codes of an index up to date with its embeddings; the caller holds the index.

    What is coded is kept, whatever ends this. They are fitted when there are none of the kind that is asked for, and
    anew when there are twice as many pictures as then.

    Args:
        store: of the index.
        show_progress: whether to show how far it is.

    Raises:
        OSError: if they cannot be written.
    """
    kind, known = store.about.vectors, _known(store)
    if kind == "float16":
        if known is not None:
            with changing(store.folder) as db:
                forget_small(db)
        remove_codes_but(store.folder, None)
        return
    name, vectors = store.vectors()
    snapshot = take_snapshot(store)
    if known is not None and known.coder.kind == kind and len(snapshot) < _GROWN * known.coder.num_fitted:
        with opened(store.folder / INDEX) as db:
            is_kept = known.vectors == name and known.count <= len(vectors) and are_whole(db, store.folder, known)
        if not is_kept:
            begin_small(store.folder, name, known.coder)
    else:
        if known is not None and known.coder.kind == kind:
            logger.warning(
                "small vectors are fitted anew: there are %s pictures, and were %s",
                f"{len(snapshot):,}",
                f"{known.coder.num_fitted:,}",
            )
        begin_small(store.folder, name, _fitted(store, snapshot))
    known = _known(store)
    assert known is not None, "it was just begun"
    remove_codes_but(store.folder, known.codes)
    shown = console(shown=show_progress and len(vectors) > known.count)
    with Progress("coding", total=len(vectors) - known.count, unit="pictures", console=shown) as bar:
        while known.count < len(vectors):
            blocks = vectors[known.count : known.count + 8 * _BLOCK]
            coded = [known.coder.encode(blocks[start : start + _BLOCK]) for start in range(0, len(blocks), _BLOCK)]
            known = append_codes(store.folder, np.concatenate(coded), known)
            bar.advance(len(blocks))
    if known.recall is None and len(snapshot) > 1:
        note_recall(store.folder, measured_recall(take_snapshot(store), show_progress=show_progress))


def measured_recall(snapshot: Snapshot, *, show_progress: bool = False) -> Recall:
    """Return how many of the nearest pictures of some, on which codes were not fitted, are found by small vectors.

    Of pictures that are equally near, each counts.

    Args:
        snapshot: with small vectors, of two pictures or more.
        show_progress: whether to show how far it is.
    """
    held = held_out(len(snapshot))
    queries, k = snapshot.vectors[held].astype(np.float32), min(_NEAREST, len(snapshot) - 1)
    least = _least_scores(snapshot.vectors, queries, k + 1, show_progress=show_progress)
    scan = SmallScan(snapshot)
    found = scan.nearest_to_each(queries, k + 1, num_candidates=scan.shortlist)
    # The picture itself is among them, and counts in neither.
    hits = [np.count_nonzero(scores >= bound - _SLACK) - 1 for (_, scores), bound in zip(found, least, strict=True)]
    assert snapshot.small is not None, "it has small vectors"
    return Recall(
        kind=snapshot.small.coder.kind,
        num_bytes=snapshot.small.coder.num_bytes,
        recall=float(np.clip(np.mean(hits) / k, 0, 1)),
        num_queries=len(held),
        num_pictures=len(snapshot),
        shortlist=scan.shortlist,
    )


def held_out(count: int) -> NDArray[np.int64]:
    """Return the places of the pictures that codes are measured with, from all over a collection."""
    return np.unique(np.linspace(0, count - 1, min(_QUERIES, max(1, count // 10))).astype(np.int64))


def _least_scores(
    vectors: Vectors, queries: NDArray[np.float32], k: int, *, show_progress: bool
) -> NDArray[np.float32]:
    """Return for each query the similarity of the embedding that is the k-th nearest, all of which are compared."""
    wanted, best = torch.from_numpy(queries), torch.full((len(queries), k), -torch.inf)
    shown = console(shown=show_progress and len(vectors) > _ROWS)
    with Progress("measuring", total=len(vectors), unit="pictures", console=shown) as bar:
        for start in range(0, len(vectors), _BLOCK):
            block = torch.from_numpy(vectors[start : start + _BLOCK].astype(np.float32))
            best = torch.cat([best, wanted @ block.T], 1).topk(k, 1).values
            bar.advance(len(block))
    return best[:, -1].numpy()


def _fitted(store: Store, snapshot: Snapshot) -> Coder:
    places = np.setdiff1d(np.arange(len(snapshot)), held_out(len(snapshot)) if len(snapshot) > _NEAREST else [])
    chosen = places[np.unique(np.linspace(0, len(places) - 1, min(_FITTED, len(places))).astype(np.int64))]
    return fit(store.about.vectors, snapshot.vectors[chosen], len(snapshot))


def _known(store: Store) -> SmallFile | None:
    with opened(store.folder / INDEX) as db:
        return small_file(db, store.about.dim)


def _most(
    places: NDArray[np.int64], scores: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if count >= len(scores):
        return places, scores
    chosen = np.argpartition(-scores, count)[:count]
    return places[chosen], scores[chosen]
