"""Serves an index to several threads, reloads it after changes, and caches thumbnails."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.collections.collection import Collection
from mobileclip.collections.duplicates import Duplicates
from mobileclip.collections.images import make_small, make_small_frame, read_encoded, webp
from mobileclip.collections.scan import stamp_of
from mobileclip.collections.snapshot import Match, match_of
from mobileclip.collections.store import Store
from mobileclip.processes import num_cores

SIDES = {"small": 416, "large": 1600}
"""Maximum side of an image in pixels, by the name of the size."""

_MOST_BYTES = 2**26
_QUALITY = 80
# Each call holds a decoded image in memory.
_MOST_AT_ONCE = min(4, num_cores())


@attrs.frozen(kw_only=True)
class Indexed:
    """The state of an image's file at indexing.

    Args:
        sha256: SHA-256 of the encoded image or video.
        mtime_ns: modification time of the file, in nanoseconds since 1970.
    """

    sha256: str
    mtime_ns: int


_Key = tuple[int, Indexed, int]


@attrs.frozen
class _Kept:
    """A cached thumbnail, and the state of its file."""

    data: bytes
    stamp: tuple[int, int] | None


class Thumbnails:
    """A cache of the most recently used thumbnails.

    Args:
        num_bytes: maximum size of the cache, in bytes.
    """

    def __init__(self, num_bytes: int = _MOST_BYTES) -> None:
        self.num_bytes = num_bytes
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._num_kept_bytes = 0
        self._changing = threading.Lock()
        self._decoding = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def get(self, match: Match, indexed: Indexed, side: int) -> bytes | None:
        """Return a thumbnail as WebP without metadata; None if the image is missing, changed or unreadable.

        Args:
            match: match of the image.
            indexed: state of the image's file at indexing.
            side: maximum side in pixels.
        """
        key, stamp = (match.id, indexed, side), stamp_of(match.path)
        with self._changing:
            kept = self._kept.get(key)
            if kept is not None and kept.stamp == stamp:
                self._kept.move_to_end(key)
                return kept.data
        with self._decoding:
            data = _make(match, indexed, side)
        if data is not None:
            self._keep(key, _Kept(data, stamp))
        return data

    def _keep(self, key: _Key, kept: _Kept) -> None:
        with self._changing:
            if (before := self._kept.pop(key, None)) is not None:
                self._num_kept_bytes -= len(before.data)
            self._kept[key] = kept
            self._num_kept_bytes += len(kept.data)
            while self._num_kept_bytes > self.num_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_kept_bytes -= len(oldest.data)


def read_if_unchanged(match: Match, indexed: Indexed) -> bytes | None:
    """Return an encoded image; None if its file is missing or changed.

    Args:
        match: match of the image.
        indexed: state of the image's file at indexing.
    """
    (data,) = read_encoded([match])
    return data if data is not None and hashlib.sha256(data).hexdigest() == indexed.sha256 else None


def _make(match: Match, indexed: Indexed, side: int) -> bytes | None:
    # If a different file is now at the path, the server does not show it.
    if match.time is not None:
        # Hashing a video takes seconds.
        is_same = stamp_of(match.path) == (indexed.mtime_ns, match.size)
        image = make_small_frame(match, side) if is_same else None
    else:
        data = read_if_unchanged(match, indexed)
        image = None if data is None else make_small(data, match, side)
    return None if image is None else webp(image, _QUALITY)


_LONGEST_TEXT = 4096


class UnreadableIndexError(Exception):
    """Raised if the index is missing or damaged, or its model cannot be loaded."""


@attrs.define(eq=False)
class _KeptDuplicates:
    """Cached groups of near duplicates."""

    collection: Collection | None = None
    threshold: float = 0.0
    found: Duplicates = Duplicates()


class ServedCollection:
    """A collection for requests from several threads.

    A loaded collection never changes. After a write to the index, the server loads a new collection, and running
    requests keep the old collection.

    Args:
        collection: collection to serve.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._seen: str | None = None
        self._reading = threading.Lock()
        self._kept = _KeptDuplicates()
        self._comparing = threading.Lock()
        self.version = ""
        """Token of the loaded index, see `Store.token`."""

    def current(self) -> Collection:
        """Return the current collection, with its model loaded.

        Raises:
            UnreadableIndexError: if the index cannot be read.
        """
        with self._reading:
            try:
                # The token is read first, so that the next request detects any later write.
                seen = Store.open(self._collection.path).token
                if seen != self._seen:
                    collection = self._collection.reopened()
                    collection.load()
                    self._collection = collection
                    self._seen = seen
                    self.version = seen
            except (OSError, ValueError, ImportError) as error:
                self._seen = None
                raise UnreadableIndexError(str(error)) from error
            return self._collection

    def duplicates(self, threshold: float) -> Duplicates:
        """Return the groups of near duplicates, and cache the last result.

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
                kept = self._kept = _KeptDuplicates(collection=collection, threshold=threshold, found=found)
            return kept.found.still_there()


def image_of(collection: Collection, number: int) -> tuple[Match, Indexed]:
    """Return an image by its id, with the state of its file at indexing.

    Raises:
        ValueError: if the index has no image with this id.
    """
    row = collection.snapshot.row(number)
    return match_of(row, 1.0), Indexed(sha256=row["sha256"], mtime_ns=row["mtime_ns"])


def display_values(match: Match) -> dict[str, Any]:
    """Return the metadata of an image for display on the page, without control characters."""
    known = {
        name: storage.printable(value, limit=_LONGEST_TEXT) if isinstance(value, str) else value
        for name, value in match.to_dict().items()
    }
    names = {"name": match.name, "file": Path(match.name).name}
    return {**known, **{name: storage.printable(text, limit=_LONGEST_TEXT) for name, text in names.items()}}
