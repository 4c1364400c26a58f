"""A read-only view of an index at one moment: ids and embeddings in memory, other columns on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.store.presence import Presence
from mobileclip.collections.store.rows import COLUMNS, array_of
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.words import LEVELS, Words, cosines, read_words

TAG = "tag"
"""The column of tags; behind it and a colon, a word names the column of its scores."""

# Tags of a picture that are told, at most.
_MOST_TAGS = 5


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """The pictures of an index.

    Rows are never changed: a picture is as it was, or was removed since.

    Shape:
        vectors: `(pictures, dim)`, float16, a file's perhaps; ids: `(pictures,)`, int64, rising.

    Args:
        ids: of the rows.
        vectors: of unit length.
        num_unreadable: files that are known and cannot be read.
        store: that has the rows.
        version: of the store, at the latest when this was read.
        small: codes of the embeddings, where these are not held in memory.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float16]
    num_unreadable: int = 0
    store: Store | None = None
    version: tuple[int, int] = (0, 0)
    _columns: dict[str, NDArray[Any]] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.ids)

    def place(self, number: int) -> int:
        """Return where a picture is, by its id.

        Raises:
            ValueError: if there is none of that id.
        """
        place = int(np.searchsorted(self.ids, number))
        if place == len(self.ids) or self.ids[place] != number:
            raise ValueError(f"the index has no picture of the id {number}; search again, it may have been removed")
        return place

    def rows(
        self, places: Sequence[int] | NDArray[np.int64], columns: Sequence[str] = COLUMNS
    ) -> list[dict[str, Any] | None]:
        """Return what is known of some pictures, by column; None for one that was removed since.

        Args:
            places: of the pictures.
            columns: that are asked for.
        """
        assert self.store is not None, "rows are asked of an index"
        wanted = self.ids[np.asarray(places, np.int64)].tolist()
        ids = None if len(wanted) == len(self) else wanted
        found = {number: values for number, *values in self.store.values("id", *columns, ids=ids)}
        return [dict(zip(columns, found[number], strict=True)) if number in found else None for number in wanted]

    def column(self, name: str) -> NDArray[Any]:
        """Return what a column has of each picture, see `array_of`; it is read once.

        Of a picture that is gone by then, it has nothing.

        Shape:
            `(pictures,)`.
        """
        assert self.store is not None, "rows are asked of an index"
        if name not in self._columns and name.startswith(f"{TAG}:"):
            words = self.require_words()
            self._columns[name] = words.scores(self.vectors, words.place(name.removeprefix(f"{TAG}:")))
        if name not in self._columns:
            values = self.store.column(name)
            if self.store.version != self.version:  # they may be of other pictures
                held = dict(self.store.values("id", name))
                values = [held.get(number) for number in self.ids.tolist()]
            self._columns[name] = array_of(name, values)
        return self._columns[name]

    @cached_property
    def words(self) -> Words | None:
        """The words that pictures are tagged with; None without any, or of those that are of another model."""
        words = None if self.store is None else read_words(self.store.folder)
        return words if words is None or self._is_of(words) else None

    def _is_of(self, words: Words) -> bool:
        return self.store is not None and words.about.identity.is_same(self.store.about.identity)

    def require_words(self) -> Words:
        """Return the words that pictures are tagged with.

        Raises:
            ValueError: if there are none, or they are of another model.
        """
        assert self.store is not None, "words are asked of an index"
        if self.words is not None:
            return self.words
        folder, other = self.store.folder, read_words(self.store.folder)
        if other is None:
            raise ValueError(f"the index {folder} has no tags; write some: `mobileclip tag {folder} --vocabulary FILE`")
        raise ValueError(
            f"the tags of the index {folder} are of {other.about.model}, and it is of {self.store.about.model} now; "
            f"write them anew: `mobileclip tag {folder}`"
        )

    def tags(self, places: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, ...]]:
        """Return the tags of some pictures, the one that fits best first, five of each at most.

        Args:
            places: of the pictures.
        """
        words = self.words
        if words is None or not len(places):
            return [() for _ in places]
        similar = cosines(self.vectors[np.asarray(places, np.int64)], words.vectors.astype(np.float32))
        scores = np.stack([np.interp(*one, LEVELS) for one in zip(similar.T, words.levels, strict=True)], axis=1)
        # Of words that a picture fits equally well, as the best of all, the more similar one comes first.
        best = np.lexsort((-similar, -scores), axis=1)[:, :_MOST_TAGS]
        return [
            tuple(words.words[word] for word in row if scores[place, word] >= 1 - words.share)
            for place, row in enumerate(best)
        ]

    def shown(self) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
        """Return the places of the pictures whose files are where the index has them, and what is known of them.

        Raises:
            ValueError: if there is no picture, or none is where it was.
        """
        if not len(self):
            raise ValueError("there are no pictures in the index; add some: `mobileclip index FOLDER`")
        rows, there = self.rows(np.arange(len(self))), Presence()
        shown = {place: row for place, row in enumerate(rows) if row is not None and row["path"] in there}
        if not shown:
            raise ValueError(
                "the pictures of the index are not where they were; bring it up to date: `mobileclip index`"
            )
        return np.array(list(shown), np.int64), list(shown.values())


def take_snapshot(store: Store) -> Snapshot:
    """Return what an index holds now; pictures that are written later are not in it.

    Raises:
        ValueError: if the index is damaged.
        OSError: if it cannot be read.
    """
    version = store.version
    ids, vectors, num_unreadable = store.embeddings()
    return Snapshot(ids=ids, vectors=vectors, num_unreadable=num_unreadable, store=store, version=version)
