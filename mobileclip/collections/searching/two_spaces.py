"""An index that is being upgraded, as it is searched: the old space proposes, and the new one ranks.

What the old model's shortlist of a query has, is encoded anew and kept. All that has been encoded anew, by whatever
query, is ranked in the new space; a picture that has not been keeps the rank that the old model gives it, since scores
of two spaces cannot be compared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.searching.neighbours import Found, nearest_of
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.upgrading import NewSpace
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

Vector = NDArray[np.float32]
Places = NDArray[np.int64]
Encode = Callable[[Places], list[tuple[int, str, float | None, Vector]]]
"""Has pictures encoded by the new model: from places to ids, hashes, times and embeddings of those that can be."""

SHORTLIST = 50
"""Pictures of a query that are encoded anew, at most."""


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
        self._lock = threading.Lock()
        self._refresh()

    @property
    def num_done(self) -> int:
        """How many pictures are in the new space."""
        return int(np.count_nonzero(self._done))

    def embeddings_of(self, ids: Sequence[int]) -> list[Vector]:
        """Return embeddings in the new space, for which pictures are encoded; fewer where some cannot be.

        Args:
            ids: of rows.

        Raises:
            ValueError: if there is no picture of an id.
        """
        places = np.array([self._snapshot.place(one) for one in ids], np.int64)
        self._encode_missing(places)
        return [self._vectors[place].astype(np.float32) for place in places if self._done[place]]

    def nearest(self, new: Vector, k: int, *, proposed: Found, among: Places | None, shortlist: int) -> Found:
        """Return places, the nearest first, and their scores, of the space that each is ranked in.

        Args:
            new: the query in the new space, of unit length.
            k: how many.
            proposed: what is nearest in the old space: at least k, and at least the shortlist.
            among: places of those that may be found; None for all.
            shortlist: of the proposed ones, so many are encoded anew where they were not yet.
        """
        self._refresh()
        self._encode_missing(proposed[0][:shortlist])
        done = self._done.copy()
        ranked = np.flatnonzero(done) if among is None else among[done[among]]
        best = (np.empty(0, np.int64), np.empty(0, np.float32))
        if len(ranked):
            best = nearest_of(self._vectors, None if len(ranked) == len(done) else ranked, new, k)
        return joined(best, proposed, done, k)

    def _encode_missing(self, places: Places) -> None:
        with self._lock:
            missing = places[~(self._done[places] | self._failed[places])]
            if not len(missing):
                return
            rows = self._encode(missing)
            self._failed[missing] = True
            self._enter(np.array([number for number, *_ in rows], np.int64), [vector for *_, vector in rows])
        try:
            self._space.keep(rows)
        except OSError as error:  # of an index that cannot be written to, it is known here alone
            logger.warning("what was encoded anew is not kept: %s", error)

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
