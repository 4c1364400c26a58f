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
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

SECONDS = 0.5
"""Of a query, to encode pictures where the index is being upgraded; the rest is encoded behind its answer."""

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
        collection: as it was opened. Its queries get `SECONDS`, unless it says in what time they encode.
    """

    def __init__(self, collection: Collection) -> None:
        collection.seconds = SECONDS if collection.seconds is None else collection.seconds
        self._collection = collection
        self._filling, self._is_filling = threading.Lock(), False
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

    def fill(self) -> None:
        """Have the pictures that queries left encoded, behind their answers."""
        with self._filling:
            if self._is_filling or not self._collection.num_waiting:
                return
            self._is_filling = True
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        try:
            while True:
                with self._filling:
                    if not self._collection.num_waiting:
                        self._is_filling = False
                        return
                self._collection.encode_waiting()
        except (OSError, ValueError) as error:
            raise_machine_fault(error)
            logger.warning("pictures wait until the next search, since they cannot be encoded: %s", error)
        finally:
            with self._filling:
                self._is_filling = False

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
