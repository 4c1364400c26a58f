"""An index that is being upgraded, as it is searched: the old space proposes, and the new one ranks.

Of each query, a shortlist of pictures that are not encoded anew yet is, and is kept. The old space proposes it twice:
by the old model's query, and by the new model's, taken there by the linear map that pictures in both spaces give. All
that has been encoded anew, by whatever query, is ranked in the new space; a picture that has not been keeps the rank
that the old model gives it, since scores of two spaces cannot be compared.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.searching.learned import Cache, nearest_with
from mobileclip.collections.searching.neighbours import Found, nearest_of
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.upgrading import NewSpace
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]
Places = NDArray[np.int64]
Encode = Callable[[Places], list[tuple[int, str, float | None, Vector]]]
"""Has pictures encoded by the new model: from places to ids, hashes, times and embeddings of those that can be."""

SHORTLIST = 50
"""Pictures of a query that are encoded anew, at most."""

# Pictures that are encoded at once where a query waits: it waits for one such block too many, at most.
_AT_ONCE = 4
# The map of queries: from so many pictures on, of so many at most, and made anew when there are so many times more.
_FEWEST, _MOST, _GROWN = 100, 16_384, 1.125
_RIDGE = 1e-3
# Of two rankings of one space, as in reciprocal rank fusion; the old space is asked for so many times the shortlist.
_FUSED, _DEEPEST = 60, 20


def joined(best: Found, proposed: Found, done: NDArray[np.bool_], k: int) -> Found:
    """Return what two spaces have found: those that were encoded anew in their order, the others at their old ranks.

    Args:
        best: what is nearest in the new space, of all that was encoded anew.
        proposed: what is nearest in the old space.
        done: which places were encoded anew.
        k: how many.
    """
    found = list(zip(best[0].tolist(), best[1].tolist(), strict=True))
    for rank, (place, score) in enumerate(zip(proposed[0].tolist(), proposed[1].tolist(), strict=True)):
        if not done[place]:
            found.insert(rank, (place, score))
    places, scores = [place for place, _ in found[:k]], [score for _, score in found[:k]]
    return np.array(places, np.int64), np.array(scores, np.float32)


def query_map(old: Matrix, new: Matrix) -> Matrix:
    """Return the matrix that takes a query of the new space into the old one: ridge regression of pictures in both.

    Shape:
        `(pictures, old dim)` and `(pictures, new dim)` to `(old dim, new dim)`.

    Args:
        old: embeddings of some pictures.
        new: of the same pictures.
    """
    x, y = (one - one.mean(0) for one in (old, new))
    solved: Matrix = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1], dtype=np.float32), x.T @ y)
    return solved


def depth(shortlist: int, done: NDArray[np.bool_]) -> int:
    """Return how many pictures the old space is asked for, so that a shortlist of them is not encoded yet.

    Twice as many as would do where chance had chosen what is encoded: queries have chosen the nearest.
    """
    left = max(len(done) - int(np.count_nonzero(done)), math.ceil(len(done) / _DEEPEST), 1)
    return min(len(done), math.ceil(2 * shortlist * len(done) / left))


def shortlisted(rankings: Iterable[Places], done: NDArray[np.bool_], shortlist: int) -> Places:
    """Return the first of several rankings together that are not encoded yet, by reciprocal rank fusion."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking.tolist()):
            scores[place] = scores.get(place, 0.0) + 1 / (_FUSED + rank)
    ranked = sorted(scores, key=lambda place: (-scores[place], place))
    return np.array([place for place in ranked if not done[place]][:shortlist], np.int64)


class TwoSpaces:
    """Both spaces of a snapshot, for any number of threads.

    Args:
        snapshot: what the old space has.
        space: the new one, which other processes may add to.
        encode: has pictures encoded.
    """

    def __init__(self, snapshot: Snapshot, space: NewSpace, encode: Encode) -> None:
        self._snapshot, self._space, self._encode = snapshot, space, encode
        self._vectors = np.zeros((len(snapshot), space.about.dim), np.float16)
        self._done = np.zeros(len(snapshot), bool)
        self._failed = np.zeros(len(snapshot), bool)
        self._last = 0
        self._lock, self._encoding = threading.Lock(), threading.Lock()
        self._waiting: dict[int, None] = {}
        self._map: tuple[int, Matrix] | None = None
        self._refresh()

    @property
    def num_done(self) -> int:
        """How many pictures are in the new space."""
        return int(np.count_nonzero(self._done))

    @property
    def num_waiting(self) -> int:
        """How many pictures of shortlists are not encoded yet."""
        return len(self._waiting)

    def embeddings_of(self, ids: Sequence[int], seconds: float | None = None) -> dict[int, Vector]:
        """Return embeddings in the new space by id, for which pictures are encoded; of some none, where they cannot be.

        Args:
            ids: of rows.
            seconds: for that, see `nearest`.

        Raises:
            ValueError: if there is no picture of an id.
        """
        if not ids:
            return {}
        self._refresh()
        places = np.array([self._snapshot.place(one) for one in ids], np.int64)
        self._encode_shortlist(places[~(self._done[places] | self._failed[places])], seconds)
        pairs = zip(ids, places.tolist(), strict=True)
        return {one: self._vectors[place].astype(np.float32) for one, place in pairs if self._done[place]}

    def cannot_be(self, number: int) -> bool:
        """Return whether a picture could not be encoded, by the id of its row."""
        return bool(self._failed[(place := self._snapshot.place(number))] and not self._done[place])

    def nearest(
        self,
        query: Vector,
        k: int,
        *,
        search: Callable[[Vector, int], Found],
        old: Vector,
        among: Places | None,
        shortlist: int,
        seconds: float | None = None,
        cache: Cache | None = None,
    ) -> Found:
        """Return places, the nearest first, and their scores, of the space that each is ranked in.

        Args:
            query: in the new space, of unit length.
            k: how many.
            search: finds what is nearest in the old space.
            old: the query in the old space, of unit length.
            among: places of those that may be found; None for all.
            shortlist: so many pictures that were not yet are encoded anew.
            seconds: for that, but for the first few; what is left waits for `encode_waiting`. None for all at once.
            cache: what examples add to the scores in the new space.
        """
        self._refresh()
        proposed = search(old, max(k, depth(shortlist, self._done)))
        if shortlist:
            rankings = [proposed[0]]
            if (mapping := self._query_map()) is not None:
                rankings.append(search(_unit(mapping @ query), len(proposed[0]))[0])
            self._encode_shortlist(shortlisted(rankings, self._done | self._failed, shortlist), seconds)
        done = self._done.copy()
        ranked = np.flatnonzero(done) if among is None else among[done[among]]
        best = (np.empty(0, np.int64), np.empty(0, np.float32))
        if len(ranked):
            some = None if len(ranked) == len(done) else ranked
            best = (
                nearest_of(self._vectors, some, query, k)
                if cache is None
                else nearest_with(self._vectors, some, query, cache, k)
            )
        return joined(best, proposed, done, k)

    def encode_waiting(self) -> bool:
        """Encode some of the pictures that wait, the last query's first, and return whether there are more."""
        with self._lock:
            some = list(self._waiting)[:_AT_ONCE]
        self._encode_missing(np.array(some, np.int64), _AT_ONCE)
        with self._lock:
            for place in some:
                self._waiting.pop(place, None)
            return bool(self._waiting)

    def _encode_shortlist(self, places: Places, seconds: float | None) -> None:
        if seconds is None:
            self._encode_missing(places, max(1, len(places)))
            return
        end = time.monotonic() + seconds
        for start in range(0, len(places), _AT_ONCE):
            if start and time.monotonic() > end:
                with self._lock:
                    self._waiting = dict.fromkeys([*places[start:].tolist(), *self._waiting])
                return
            self._encode_missing(places[start : start + _AT_ONCE], _AT_ONCE)

    def _encode_missing(self, places: Places, most: int) -> None:
        with self._encoding:
            missing = places[~(self._done[places] | self._failed[places])][:most]
            if not len(missing):
                return
            rows = self._encode(missing)
            with self._lock:
                self._failed[missing] = True
                self._enter(np.array([number for number, *_ in rows], np.int64), [vector for *_, vector in rows])
        try:
            self._space.keep(rows)
        except OSError as error:  # of an index that cannot be written to, it is known here alone
            logger.warning("what was encoded anew is not kept: %s", error)

    def _query_map(self) -> Matrix | None:
        """Return the map of queries into the old space; None of few pictures."""
        places = np.flatnonzero(self._done)
        known = self._map
        if len(places) < _FEWEST or (known is not None and len(places) < _GROWN * known[0]):
            return None if known is None else known[1]
        some = places[np.unique(np.linspace(0, len(places) - 1, min(_MOST, len(places))).astype(np.int64))]
        fitted = query_map(*(one[some].astype(np.float32) for one in (self._snapshot.vectors, self._vectors)))
        self._map = len(places), fitted
        return fitted

    def _refresh(self) -> None:
        """Take in what others have added."""
        with self._lock:
            while True:
                before = self._last
                self._last, ids, vectors = self._space.since(before)
                if self._last == before:
                    return
                self._enter(ids, vectors)

    def _enter(self, ids: NDArray[np.int64], vectors: Sequence[Vector] | NDArray[np.float16]) -> None:
        if not len(ids) or not len(self._snapshot):
            return
        places = np.minimum(np.searchsorted(self._snapshot.ids, ids), len(self._snapshot) - 1)
        known = self._snapshot.ids[places] == ids  # others were removed, or are newer than the snapshot
        self._vectors[places[known]] = np.asarray(vectors, np.float16)[known]
        self._done[places[known]] = True


def _unit(vector: Vector) -> Vector:
    unit: Vector = vector / max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))
    return unit
