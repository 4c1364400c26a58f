"""Where every image of a data set is: an index on disk, made once, from which images are read by their place.

It is one SQLite file: a row per image, entered shard by shard, so that a killed run loses a shard's work at most.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.joining.image_scan import Scan, scan_shard, storable
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.workers import Mapper, one_after_another
from mobileclip.progress import Progress
from mobileclip.strict import strict
from mobileclip.terminal import console

_VERSION = 2
_MISSING = "missing"
_CACHE_KIB = 64 * 1024
# SQLite's limit on question marks was 999 for long.
_KEYS_PER_QUERY = 500

# Another job may be entering a large shard.
LOCK_SECONDS = 600.0
_ADVICE = {
    "locked": "another job is writing to it: wait for it, or choose another with `index`",
    "full": "make room on its disk and run this again: what was indexed is kept",
    "disk I/O": "see to its disk and run this again",
    "readonly": "it, or its folder, cannot be written: choose another place with `index`",
    "unable to open": "its folder cannot be written: choose another place with `index`",
}
P = ParamSpec("P")
R = TypeVar("R")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL, by TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shard (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, place INTEGER NOT NULL, fingerprint TEXT NOT NULL,
    hashed INTEGER NOT NULL, num_images INTEGER NOT NULL, num_without INTEGER NOT NULL, problem TEXT
);
CREATE TABLE IF NOT EXISTS image (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, shard INTEGER NOT NULL, extension TEXT NOT NULL,
    start INTEGER NOT NULL, size INTEGER NOT NULL, text_start INTEGER, text_size INTEGER,
    json_start INTEGER, json_size INTEGER, hash INTEGER
);
"""
_INDICES = """
CREATE INDEX IF NOT EXISTS image_key ON image (key);
CREATE INDEX IF NOT EXISTS image_hash ON image (hash) WHERE hash IS NOT NULL;
"""
_INSERT_SHARD = """
INSERT INTO shard (path, place, fingerprint, hashed, num_images, num_without, problem) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_IMAGE = """
INSERT INTO image (shard, key, extension, start, size, text_start, text_size, json_start, json_size, hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_FOUND = """
SELECT image.key, image.id, shard.path, extension, start, size, text_start, text_size, json_start, json_size, hash
FROM image JOIN shard ON image.shard = shard.id WHERE image.key IN ({}) ORDER BY shard.place, start
"""


@attrs.frozen(field_transformer=strict)
class IndexedImage:
    """Where an image is.

    Args:
        number: tells it from every other image of the index.
        shard: path or address of the tar file.
        extension: format of the image: jpg, jpeg, png or webp.
        start: offset of its first byte in the shard.
        size: in bytes.
        text_start: offset of the caption beside it, None where there is none.
        text_size: of the caption, in bytes.
        json_start: offset of the JSON beside it, None where there is none.
        json_size: of the JSON, in bytes.
        hash: the first 8 bytes of its SHA-256, None where it was indexed without.
    """

    number: int
    shard: str
    extension: str
    start: int = attrs.field(validator=validators.ge(0))
    size: int = attrs.field(validator=validators.ge(0))
    text_start: int | None
    text_size: int | None
    json_start: int | None
    json_size: int | None
    hash: int | None


@attrs.frozen(kw_only=True)
class Placeholder:
    """One picture that stands under many keys, as servers send for what they no longer have.

    Args:
        sha256: the first 16 digits of its SHA-256.
        num_keys: number of keys that it stands under.
        num_bytes: of the encoded image.
        example: one of the keys.
        shard: where that one is.
    """

    sha256: str
    num_keys: int
    num_bytes: int
    example: str
    shard: str


@attrs.frozen(kw_only=True)
class IndexCounts:
    """How much an index holds.

    Args:
        shards: number of shards that were read.
        images: number of images.
        keys: number of different keys.
        repeated_keys: number of keys with more than one image; the first one counts.
        without_field: samples without the field that is the key.
        unreadable: what is wrong with a shard, by its path; what comes before a break is in the index.
    """

    shards: int
    images: int
    keys: int
    repeated_keys: int
    without_field: int
    unreadable: dict[str, str]


def _explained(method: Callable[Concatenate[ImageIndex, P], R]) -> Callable[Concatenate[ImageIndex, P], R]:
    """Let what goes wrong with the file say which one it is, and what to do."""

    @wraps(method)
    def explained(self: ImageIndex, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.Error, OverflowError) as error:
            text = str(error)
            advice = next((advice for word, advice in _ADVICE.items() if word in text), "delete it or choose another")
            raise ValueError(f"{self.path} cannot be used as an index of images ({text}); {advice}") from None

    return explained


class ImageIndex:
    """The images of shards by key, on disk; `build_image_index` makes it.

    Args:
        path: the file.
        by: `key`, or the field of the samples' JSON that is the key.
        lock_seconds: for which another job that writes to it is waited for.

    Raises:
        ValueError: if the file is no index, or one by another key; if it is locked, full, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], by: str, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = Path(path)
        self.by = by
        self.lock_seconds = lock_seconds
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._database = self._connected()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @_explained
    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, timeout=self.lock_seconds)

    @_explained
    def _open(self) -> None:
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            about = self._database.execute("SELECT version, by FROM about").fetchone()
            if about is None:
                self._database.execute("INSERT INTO about VALUES (?, ?)", (_VERSION, self.by))
                about = (_VERSION, self.by)
        if about != (_VERSION, self.by):
            raise ValueError(
                f"the index {self.path} is by {about[1]} (version {about[0]}), expected by {self.by} (version "
                f"{_VERSION}); choose another file, or delete it to have it made anew"
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> ImageIndex:  # noqa: PYI034 - `Self` needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_explained
    def find(self, keys: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images of these keys, as far as there are any; of several under one key the first."""
        found: dict[str, IndexedImage] = {}
        for first in range(0, len(keys), _KEYS_PER_QUERY):
            some = [storable(key) for key in keys[first : first + _KEYS_PER_QUERY]]
            marks = ",".join("?" * len(some))
            for key, *place in self._database.execute(_FOUND.format(marks), some):
                found.setdefault(key, IndexedImage(*place))
        return found

    @_explained
    def counts(self) -> IndexCounts:
        """Return how much there is."""
        one = self._database.execute
        images, without = one("SELECT total(num_images), total(num_without) FROM shard").fetchone()
        keys, repeated = one(
            "SELECT count(*), total(many) FROM (SELECT count(*) > 1 AS many FROM image GROUP BY key)"
        ).fetchone()
        problems = one("SELECT path, problem FROM shard WHERE problem IS NOT NULL ORDER BY place").fetchall()
        return IndexCounts(
            shards=one("SELECT count(*) FROM shard WHERE num_images > 0 OR problem IS NULL").fetchone()[0],
            images=int(images),
            keys=keys,
            repeated_keys=int(repeated),
            without_field=int(without),
            unreadable=dict(problems),
        )

    @_explained
    def placeholders(self, threshold: int) -> dict[int, Placeholder]:
        """Return, by hash, the pictures that stand under `threshold` or more keys, the most frequent first."""
        one = self._database.execute
        often = one(
            "SELECT hash FROM image WHERE hash IS NOT NULL GROUP BY hash HAVING count(*) >= ?", (threshold,)
        ).fetchall()
        found: dict[int, Placeholder] = {}
        for (number,) in often:
            (num_keys,) = one("SELECT count(DISTINCT key) FROM image WHERE hash = ?", (number,)).fetchone()
            if num_keys < threshold:
                continue
            size, key, shard = one(
                "SELECT size, key, path FROM image JOIN shard ON shard = shard.id WHERE hash = ? "
                "ORDER BY place, start LIMIT 1",
                (number,),
            ).fetchone()
            sha256 = number.to_bytes(8, "big", signed=True).hex()
            found[number] = Placeholder(sha256=sha256, num_keys=num_keys, num_bytes=size, example=key, shard=shard)
        return dict(sorted(found.items(), key=lambda item: (-item[1].num_keys, item[1].sha256)))

    @_explained
    def example(self) -> str:
        """Return a key of an image."""
        return str(self._database.execute("SELECT key FROM image LIMIT 1").fetchone()[0])

    @property
    @_explained
    def last_number(self) -> int:
        """The greatest `number` of an image."""
        return int(self._database.execute("SELECT coalesce(max(id), 0) FROM image").fetchone()[0])

    @_explained
    def fingerprint(self) -> str:
        """Return what changes when the indexed shards do, or the order in which they were given."""
        rows = self._database.execute("SELECT path, fingerprint, num_images FROM shard ORDER BY place").fetchall()
        return hashlib.sha256(json.dumps([self.by, rows]).encode()).hexdigest()[:16]

    @_explained
    def update(
        self, shards: Sequence[str], *, hashed: bool, share: Mapper, show_progress: bool, limits: SampleLimits
    ) -> None:
        """Make this the index of these shards, reading those that are new or have changed.

        Args:
            shards: paths or addresses; of several images under one key, that of the first shard counts.
            hashed: whether to read and hash the images, as `placeholders` needs it, and not the headers alone.
            share: reads several shards at once, or one after another.
            show_progress: show a bar with the speed and the time left.
            limits: of what is read of a sample.
        """
        fingerprints = {shard: _fingerprint(shard) for shard in shards}
        known = {
            path: (fingerprint, bool(with_hashes))
            for path, fingerprint, with_hashes in self._database.execute("SELECT path, fingerprint, hashed FROM shard")
        }
        pending = [
            shard
            for shard, fingerprint in fingerprints.items()
            if shard not in known or known[shard][0] != fingerprint or (hashed and not known[shard][1])
        ]
        stale = [shard for shard in known if shard not in fingerprints or shard in set(pending)]
        self._forget(stale)
        if 4 * len(pending) > len(shards):
            with self._transaction():
                # Sorting all keys in the end is much faster than keeping them sorted.
                self._database.execute("DROP INDEX IF EXISTS image_key")
                self._database.execute("DROP INDEX IF EXISTS image_hash")
        places = {shard: place for place, shard in enumerate(fingerprints)}
        screen = console(shown=show_progress and bool(pending))
        with Progress(
            "indexing images", total=len(shards), done=len(shards) - len(pending), unit="keys", console=screen
        ) as bar:
            scanning = partial(scan_shard, by=self.by, hashed=hashed, limits=limits)
            for scan in share(scanning, pending, doing="indexing the images of"):
                self._add(scan, places[scan.shard], fingerprints[scan.shard], hashed=hashed)
                bar.advance(count=len(scan.rows))
        with self._transaction():
            self._database.executemany("UPDATE shard SET place = ? WHERE path = ?", [(p, s) for s, p in places.items()])
            for statement in _INDICES.split(";"):
                self._database.execute(statement)

    def _forget(self, shards: Sequence[str]) -> None:
        if not shards:
            return
        with self._transaction():
            ids = [
                self._database.execute("SELECT id FROM shard WHERE path = ?", (shard,)).fetchone() for shard in shards
            ]
            self._database.execute("CREATE TEMP TABLE gone (id INTEGER PRIMARY KEY)")
            self._database.executemany("INSERT INTO gone VALUES (?)", ids)
            self._database.execute("DELETE FROM image WHERE shard IN (SELECT id FROM gone)")
            self._database.execute("DELETE FROM shard WHERE id IN (SELECT id FROM gone)")
            self._database.execute("DROP TABLE gone")

    def _add(self, scan: Scan, place: int, fingerprint: str, *, hashed: bool) -> None:
        """Enter a shard, all of it or nothing."""
        # One that is there but could not be read is tried again by every run.
        fingerprint = "" if scan.unreachable and fingerprint != _MISSING else fingerprint
        about = (scan.shard, place, fingerprint, hashed, len(scan.rows), scan.num_without, scan.problem)
        with self._transaction():
            number = self._database.execute(_INSERT_SHARD, about).lastrowid
            self._database.executemany(_INSERT_IMAGE, ((number, *row) for row in scan.rows))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)


def build_image_index(
    path: str | os.PathLike[str],
    shards: Sequence[str],
    *,
    by: str = "key",
    hashed: bool = True,
    share: Mapper = one_after_another,
    show_progress: bool = False,
    limits: SampleLimits = SAMPLE_LIMITS,
    lock_seconds: float = LOCK_SECONDS,
) -> ImageIndex:
    """Return the index of the images in shards, reading what an earlier run has not.

    Args:
        path: the index, a local file; made where it is missing.
        shards: paths or addresses of uncompressed tar files.
        by: `key`, or a field of the samples' JSON that is the key instead, such as `uid` or `url`.
        hashed: whether to read and hash the images too, which finds placeholders, and not the headers alone.
        share: reads several shards at once, or one after another.
        show_progress: show a bar with the speed and the time left.
        limits: of what is read of a sample.
        lock_seconds: for which another job that writes to the index is waited for.

    Raises:
        ValueError: if the file is no index or one by another key, is locked, full, or cannot be written; or if none of
            the shards can be read.
    """
    index = ImageIndex(path, by, lock_seconds=lock_seconds)
    try:
        index.update(shards, hashed=hashed, share=share, show_progress=show_progress, limits=limits)
        _check_images(index.counts(), shards, by)
    except BaseException:
        index.close()
        raise
    return index


def _check_images(counts: IndexCounts, shards: Sequence[str], by: str) -> None:
    if not counts.images:
        problem = next(iter(counts.unreadable.values()), f"{counts.without_field} samples have no field {by!r}")
        raise ValueError(f"there is no image in the {len(shards)} shards from {shards[0]}: {problem}")


class _Transaction:
    """All or nothing, also under a kill."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._database.in_transaction:  # a full disk may have ended it
            self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def _fingerprint(shard: str) -> str:
    try:
        return storage.fingerprint(shard)
    except FileNotFoundError:
        return _MISSING
