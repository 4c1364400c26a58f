"""An index that is served: asked from many threads, and read anew when it has changed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.collections.collection import Collection
from mobileclip.collections.searching.duplicates import Duplicates
from mobileclip.collections.searching.matches import Match, match_of
from mobileclip.collections.store.store import Store
from mobileclip.collections.web.thumbnails import Indexed

_LONGEST_TEXT = 4096


class UnreadableIndexError(Exception):
    """An index that cannot be read now: it is gone, damaged, or of a model that cannot be loaded."""


@attrs.define(eq=False)
class _Kept:
    """Duplicates that were found, for whoever asks again."""

    collection: Collection | None = None
    threshold: float = 0.0
    found: Duplicates = Duplicates()


class ServedCollection:
    """A collection as many threads ask for it.

    What was read is never changed: an index that was written to is read into a new collection, and requests that are
    under way keep the one before.

    Args:
        collection: as it was opened.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._seen: tuple[int, int] | None = None
        self._reading = threading.Lock()
        self._kept = _Kept()
        self._comparing = threading.Lock()
        self.version = 0

    def current(self) -> Collection:
        """Return the collection as it is now, read and with its model.

        Raises:
            UnreadableIndexError: if it cannot be read.
        """
        with self._reading:
            try:
                # This comes first: what is written after it is found by the next request.
                seen = Store.open(self._collection.path).version
                if seen != self._seen:
                    collection = self._collection.reopened()
                    collection.load()
                    self._collection = collection
                    self._seen = seen
                    self.version += 1
            except (OSError, ValueError, ImportError) as error:
                self._seen = None
                raise UnreadableIndexError(str(error)) from error
            return self._collection

    def duplicates(self, threshold: float) -> Duplicates:
        """Return the groups of pictures that show the same; what was found last is kept.

        Args:
            threshold: see `Collection.duplicates`.

        Raises:
            UnreadableIndexError: if the index cannot be read.
            ValueError: if the threshold is not above 0 and at most 1.
        """
        collection = self.current()
        with self._comparing:
            kept = self._kept
            if kept.collection is not collection or kept.threshold != threshold:
                found = collection.duplicates(threshold=threshold, show_progress=False)
                kept = self._kept = _Kept(collection=collection, threshold=threshold, found=found)
            return kept.found.still_there()


def picture_of(collection: Collection, number: int) -> tuple[Match, Indexed]:
    """Return a picture by its id, and what its file was when it was indexed.

    Raises:
        ValueError: if there is none.
    """
    (row,) = collection.snapshot.rows([collection.snapshot.place(number)])
    if row is None:
        raise ValueError(f"the index has no picture of the id {number}; search again, it may have been removed")
    return match_of(row, 1.0), Indexed(sha256=row["sha256"], mtime_ns=row["mtime_ns"])


def as_shown(match: Match) -> dict[str, Any]:
    """Return what the page shows of a picture: texts without anything that moves a cursor or turns a line."""
    known = {
        name: storage.printable(value, limit=_LONGEST_TEXT) if isinstance(value, str) else value
        for name, value in match.known().items()
    }
    names = {"name": match.name, "file": Path(match.name).name}
    return {**known, **{name: storage.printable(text, limit=_LONGEST_TEXT) for name, text in names.items()}}
