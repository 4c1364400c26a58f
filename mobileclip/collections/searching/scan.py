"""A search of small vectors: codes are compared, of many those of the nearest cells, and the best by embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.collections.searching.neighbours import Found, nearest_of
from mobileclip.collections.store.codes import Asked, Codes
from mobileclip.collections.store.lists import Lists
from mobileclip.collections.store.snapshot import Snapshot

SHORTLIST = {"int8": 128, "int4": 256, "bits": 1024}
"""Pictures of a query that are compared by their stored embeddings, which are read from the disk."""

# Codes that are compared at once.
_ROWS = 32_768
# Stored embeddings for every answer, where many are asked for.
_CANDIDATES = 4
# Codes of which the first bytes are compared, for each that is proposed; and the least of them.
_WHOLE, _LEAST_WHOLE = 4, 2048
# Of scores, every so many tell from which on they are among the best.
_SAMPLED = 16

Scored = tuple[NDArray[np.int64], NDArray[np.float32]]
_NOTHING: Scored = (np.empty(0, np.int64), np.empty(0, np.float32))


class SmallScan:
    """A search of codes; it proposes what `NeighbourGraphs` does, also among some of the pictures.

    Args:
        snapshot: with small vectors.
        share: of the codes in lists that are compared with a query; None for what was measured.
    """

    def __init__(self, snapshot: Snapshot, share: float | None = None) -> None:
        assert snapshot.small is not None, "whoever opens it has looked"
        self._snapshot, self._small, lists = snapshot, snapshot.small, snapshot.small.lists
        self.shortlist = SHORTLIST[snapshot.small.coder.kind]
        self.share = share if share is not None else 1.0 if lists is None else lists.share
        self._coded = int(np.searchsorted(self._small.places, len(self._small.codes)))

    @property
    def num_missing(self) -> int:
        """How many pictures have no codes yet; these are compared by their embeddings."""
        return len(self._snapshot) - self._coded

    def nearest(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Found:
        """Return the nearest embeddings; some few of a hundred may be others than the very nearest.

        Args:
            query: of unit length.
            k: how many.
            among: places of those that may be found, rising, whose codes are all compared; None for all.
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
                is_short = among is None and len(candidates) < min(k, len(self._snapshot))
                found.append(nearest_of(self._snapshot.vectors, None if is_short else candidates, query, k))
        return found

    def _proposed(
        self, queries: NDArray[np.float32], count: int, among: NDArray[np.int64] | None
    ) -> Iterator[NDArray[np.int64]]:
        """Yield for each query the places whose codes are nearest to it, and those that have none, rising."""
        small, lists = self._small, self._small.lists
        missing = np.arange(self._coded, len(self._snapshot)) if among is None else among[among >= self._coded]
        if among is not None:
            scanned = small.places[among[among < self._coded]]
        else:
            first = 0 if lists is None else int(np.searchsorted(small.places, lists.cells.end))
            scanned = small.places[first : self._coded]
        for query, found in zip(queries, self._scanned(scanned, queries, count), strict=True):
            listed = [] if among is not None or lists is None else [self._listed(lists, query, count)]
            chosen = np.unique(_most_of([found, *listed], count)[0])
            places = np.searchsorted(small.places, chosen)
            # A damaged file may name what is no picture.
            is_one = small.places.take(places, mode="clip") == chosen
            yield np.concatenate([places[is_one], missing])

    def _scanned(self, places: NDArray[np.int64], queries: NDArray[np.float32], count: int) -> list[Scored]:
        """Return of the codes at some places in the file those that are nearest to each query."""
        if not len(places):
            return [_NOTHING] * len(queries)
        codes, asked = self._small.codes, Asked(self._small.coder, queries)
        follow = places[-1] - places[0] == len(places) - 1

        def best(start: int) -> list[Scored]:
            some = places[start : start + _ROWS]
            block: Codes = codes[some[0] : some[-1] + 1] if follow else codes[some]
            return [_most(some, one, count) for one in np.ascontiguousarray(asked.scores([block]).T)]

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            mapped = pool.map if torch.get_num_threads() > 1 else map
            blocks = list(mapped(best, range(0, len(places), _ROWS)))
        return [_most_of(one, count) for one in zip(*blocks, strict=True)]

    def _listed(self, lists: Lists, query: NDArray[np.float32], count: int) -> Scored:
        """Return of the codes of the nearest cells those that are nearest to a query, by their places in the file."""
        coder, head = self._small.coder, self._small.coder.head
        ranges = lists.ranges(query, max(_WHOLE * count, self.share * len(lists.places)))
        scores = Asked(head, query[None]).scores([lists.heads[one] for one in ranges])[:, 0]
        if (alive := self._alive) is not None:
            is_one = alive.take(np.concatenate([lists.places[one] for one in ranges]), mode="clip")
            scores = np.where(is_one, scores, -np.inf)
        more = count if head is coder else max(_LEAST_WHOLE, _WHOLE * count)
        chosen, scores = _most(np.arange(len(scores)), scores, more)
        # Where each range ends among those that were compared, and how far its rows are from there.
        ends = np.cumsum([one.stop - one.start for one in ranges])
        rows = chosen + (np.array([one.stop for one in ranges]) - ends)[np.searchsorted(ends, chosen, "right")]
        rows, scores = rows[scores > -np.inf], scores[scores > -np.inf]
        if head is not coder:
            rows, scores = _most(rows, Asked(coder, query[None]).scores([lists.codes(rows)])[:, 0], count)
        return lists.places[rows].astype(np.int64), scores

    @cached_property
    def _alive(self) -> NDArray[np.bool_] | None:
        """Which embeddings in the file are of pictures; None where all in the lists are."""
        small = self._small
        assert small.lists is not None, "it has lists"
        if np.searchsorted(small.places, small.lists.cells.end) == len(small.lists.places):
            return None
        alive = np.zeros(len(small.codes), bool)
        alive[small.places[: self._coded]] = True
        return alive


def open_scan(snapshot: Snapshot) -> SmallScan | None:
    """Return a search of small vectors, or None where fewer than half of the pictures have them."""
    if snapshot.small is None:
        return None
    scan = SmallScan(snapshot)
    return scan if 2 * scan.num_missing <= len(snapshot) else None


def _most_of(found: Sequence[Scored], count: int) -> Scored:
    places, scores = (np.concatenate(one) for one in zip(*found, strict=True))
    return _most(places, scores, count)


def _most(places: NDArray[np.int64], scores: NDArray[np.float32], count: int) -> Scored:
    """Return the places with the highest scores, not in their order."""
    if count >= len(scores):
        return places, scores
    # To look for the best among all takes ten times as long as among those that are good enough.
    sample = scores[::_SAMPLED]
    if (wanted := 2 * count // _SAMPLED) < len(sample):
        likely = np.flatnonzero(scores >= np.partition(sample, len(sample) - 1 - wanted)[len(sample) - 1 - wanted])
        if len(likely) >= count:
            places, scores = places[likely], scores[likely]
    chosen = np.argpartition(-scores, count - 1)[:count]
    return places[chosen], scores[chosen]
