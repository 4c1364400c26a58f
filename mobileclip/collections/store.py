"""Stores an index in one SQLite file of rows and embeddings, with one writer at a time and many readers."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.metadata import FinishedFile, IndexMetadata
from mobileclip.inputs import Decode
from mobileclip.serialization import from_json, to_json

INDEX = "index.sqlite"

_BLOCK = 4096
_WAIT_SECONDS = 60.0
# File times have a resolution of some milliseconds; a file this old gets a different time when it is written again.
_SETTLED_NS = 20_000_000
_TRIES = 20
# Maximum number of tokens that an index stores, one per transaction.
_MOST_TOKENS = 10_000
# Reading this number of embeddings from SQLite takes half a second of CPU time.
_WORTH_ARRAYS = 100_000
_TYPES = {
    "size": "INTEGER NOT NULL",
    "width": "INTEGER NOT NULL",
    "height": "INTEGER NOT NULL",
    "latitude": "REAL",
    "longitude": "REAL",
    "time": "REAL",
    "mtime_ns": "INTEGER NOT NULL",
    "taken": "TEXT CHECK (taken IS strftime('%Y-%m-%dT%H:%M:%S', taken))",
    "camera": "TEXT",
    "part": "TEXT",
    "path": "TEXT NOT NULL",
    "sha256": "TEXT NOT NULL",
    "problem": "TEXT",
}
COLUMNS = ("id", *_TYPES)
"""The columns of a row, without the embedding."""

_UPGRADED = "CREATE TABLE upgraded (id INTEGER PRIMARY KEY, embedding BLOB NOT NULL)"
# A page of 16 KiB holds 15 embeddings of 512 numbers, a page of 4 KiB only 3. Ids are never reused. Until a job ends,
# a replaced row is only marked as removed, as another file may have the same content.
_SCHEMA = f"""
PRAGMA page_size = 16384;
BEGIN;
CREATE TABLE state (about TEXT NOT NULL);
CREATE TABLE tokens (number INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT UNIQUE NOT NULL);
CREATE TABLE images (id INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(f"{one} {_TYPES[one]}" for one in _TYPES)});
CREATE INDEX problems ON images(id) WHERE problem IS NOT NULL;
CREATE TABLE embeddings (id INTEGER PRIMARY KEY, embedding BLOB NOT NULL);
CREATE TABLE removed (id INTEGER PRIMARY KEY);
CREATE VIEW present AS SELECT * FROM images WHERE id NOT IN (SELECT id FROM removed);
CREATE TABLE finished (path TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);
CREATE TABLE inputs (path TEXT PRIMARY KEY);
CREATE TABLE concepts (name TEXT PRIMARY KEY, known TEXT NOT NULL);
CREATE TABLE examples (concept TEXT, number INTEGER, known TEXT NOT NULL, embedding BLOB NOT NULL, image BLOB,
    PRIMARY KEY (concept, number));
CREATE TABLE words (known TEXT NOT NULL, embeddings BLOB NOT NULL, levels BLOB NOT NULL);
CREATE TABLE upgrade (about TEXT NOT NULL);
{_UPGRADED}
"""  # noqa: S608 - our own names

T = TypeVar("T")
Loaded = tuple[str, NDArray[np.int64], NDArray[np.float16], int]


class ReplacedIndexError(ValueError):
    """Raised if another index has replaced an index since the last read."""


def _moment(text: str | None) -> str | None:
    """Return a date and time in the format of the index; None if the text is not a date and time."""
    try:
        return None if text is None else datetime.fromisoformat(text).isoformat(timespec="seconds")
    except ValueError:
        return None


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """A row of an index: an image or an unreadable file.

    Args:
        id: id of the row in the index; None before writing.
        path: absolute path of the file.
        part: key of the sample in its shard; None for other files.
        size: size of the encoded image or video, in bytes.
        mtime_ns: modification time of the file, in nanoseconds since 1970.
        sha256: SHA-256 of the encoded image or video.
        width: width in pixels.
        height: height in pixels.
        camera: camera model, if known.
        taken: date and time taken as `YYYY-MM-DDTHH:MM:SS`, if known.
        latitude: latitude in degrees, if known.
        longitude: longitude in degrees, if known.
        time: time of a video frame, in seconds since the first frame; None for an image.
        problem: reason why the file is unreadable; None for an image.
        embedding: embedding of the image, `(dim,)`; None for an unreadable file.
    """

    id: int | None = None
    path: str
    part: str | None = None
    size: int
    mtime_ns: int
    sha256: str
    width: int = 0
    height: int = 0
    camera: str | None = None
    taken: str | None = attrs.field(default=None, converter=_moment)
    latitude: float | None = None
    longitude: float | None = None
    time: float | None = None
    problem: str | None = None
    embedding: NDArray[np.floating[Any]] | None = None


def column_array(name: str, values: Sequence[Any]) -> NDArray[Any]:
    """Return a column as an array of dates, numbers or strings, with NaT, NaN or None for missing values."""
    if name == "taken":
        return np.array(values, "datetime64[s]")
    return np.array(values, object if _TYPES[name].startswith("TEXT") else np.float64)


@contextmanager
def read_transaction(folder: Path, *, wait_seconds: float = _WAIT_SECONDS) -> Iterator[sqlite3.Connection]:
    """Yield a connection with a consistent view of an index.

    Args:
        folder: folder of the index.
        wait_seconds: maximum time to wait for another program's lock.

    Raises:
        ValueError: if the index is damaged.
        BlockingIOError: if another program holds a lock for longer than `wait_seconds`.
        OSError: if the index cannot be read.
    """
    with _opened(folder / INDEX, wait_seconds) as db:
        db.execute("BEGIN")
        yield db


@contextmanager
def write_transaction(folder: Path, *, renew: bool = True) -> Iterator[sqlite3.Connection]:
    """Yield a connection; the context commits all writes at the end, or none after an error.

    Args:
        folder: folder of the index.
        renew: whether readers reload the index after a write.

    Raises:
        ValueError: if the index is damaged.
        OSError: if the index cannot be written.
    """
    with _opened(folder / INDEX) as db:
        db.execute("PRAGMA cache_size = -65536")
        db.execute("BEGIN IMMEDIATE")
        before = db.total_changes
        yield db
        if renew and db.total_changes != before:
            _renew_token(db)
        db.execute("COMMIT")


@attrs.define(eq=False)
class Store:
    """The SQLite file of an index.

    Args:
        folder: folder of the index.
        about: metadata of the index.
        exported: Parquet file of which the index is a temporary, read-only copy; None for other indexes.
    """

    folder: Path
    about: IndexMetadata
    exported: Path | None = None
    _is_held: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open the index in a folder.

        Raises:
            FileNotFoundError: if the folder has no index.
            ValueError: if the index is damaged.
            OSError: if the index cannot be read.
        """
        if not is_index(folder):
            raise FileNotFoundError(
                f"{folder} is not an index (no {INDEX}); create an index: `mobileclip index FOLDER --index {folder}`"
            )
        return cls(folder, _unchanged(folder, lambda db: _about(db, folder)))

    @classmethod
    def create(cls, folder: Path, about: IndexMetadata) -> Store:
        """Create a new, empty index, atomically.

        Raises:
            FileExistsError: if the folder is not empty.
            OSError: if the index cannot be written.
        """
        if folder.exists() and storage.has_content(folder):
            raise FileExistsError(f"{folder} is not empty; open the index in this folder, or choose another folder")
        with (
            storage.exclusive(folder),
            storage.atomic_file(folder / INDEX) as path,
            closing(sqlite3.connect(path)) as db,
        ):
            db.executescript(_SCHEMA)
            with db:
                db.execute("INSERT INTO state VALUES (?)", (to_json(about),))
                _renew_token(db)
        return cls(folder, about)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the index for writing.

        Raises:
            ValueError: if another job writes to the index.
            OSError: if the index cannot be written.
        """
        if self.exported is not None:
            raise OSError(f"{self.exported} is read-only; merge the file into an index")
        with storage.exclusive(self.folder):
            self.about, self._is_held = Store.open(self.folder).about, True
            try:
                yield
            finally:
                self._is_held = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the index: files, folders and shards, with absolute paths."""
        with read_transaction(self.folder) as db:
            return tuple(path for (path,) in db.execute("SELECT path FROM inputs ORDER BY rowid"))

    @property
    def finished(self) -> tuple[FinishedFile, ...]:
        """Completely read shards and videos, which an update need not read again."""
        with read_transaction(self.folder) as db:
            rows = db.execute("SELECT path, num_bytes, mtime_ns FROM finished ORDER BY rowid").fetchall()
        return tuple(FinishedFile(path=path, num_bytes=size, mtime_ns=time) for path, size, time in rows)

    @property
    def token(self) -> str:
        """A random string that changes when the index is written or replaced, but not when only concepts change."""
        with read_transaction(self.folder) as db:
            return _token(db)

    def __len__(self) -> int:
        """Return the number of images, without reading embeddings."""
        with read_transaction(self.folder) as db:
            return int(db.execute("SELECT count(*) FROM present WHERE problem IS NULL").fetchone()[0])

    def values(
        self, *columns: str, ids: Sequence[int] | None = None, since: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Return columns of rows that are not marked as removed, by ascending id.

        Args:
            columns: names of the columns.
            ids: ids of the rows; None for all rows.
            since: token of the index at the time of reading the ids; None to skip the check for a replaced index.

        Raises:
            ReplacedIndexError: if another index has replaced the index with the token `since`.
        """
        with read_transaction(self.folder) as db:
            if since and not db.execute("SELECT 1 FROM tokens WHERE token = ?", (since,)).fetchone():
                raise ReplacedIndexError(f"{self.folder} was replaced by another index; open the index again")
            return _selected(db, "present", columns, ids)

    def rows(self, ids: Sequence[int] | None = None) -> Iterator[Row]:
        """Yield rows with their embeddings, including rows that the current write job has marked as removed.

        Raises:
            ValueError: if an embedding has a wrong number of dimensions (the index is damaged).
        """
        ids = [number for (number,) in self.values("id")] if ids is None else ids
        names = (*(f"images.{one}" for one in COLUMNS), "embedding")
        for start in range(0, len(ids), _BLOCK):
            with read_transaction(self.folder) as db:
                found = _selected(db, "images LEFT JOIN embeddings USING (id)", names, ids[start : start + _BLOCK])
            vectors = iter(self._vectors([vector for *_, vector in found if vector is not None]))
            for *values, vector in found:
                embedding = None if vector is None else next(vectors)
                yield Row(embedding=embedding, **dict(zip(COLUMNS, values, strict=True)))

    def load(self) -> Loaded:
        """Return the index's token, the ids and embeddings of its images, and the number of unreadable files.

        The function reads again if another program, such as `cp`, overwrites the file during reading. For many images,
        the function caches the embeddings in an array file named after the token, since SQLite takes seconds for a
        million rows.

        Shape:
            ids: `(images,)`, int64, ascending; embeddings: `(images, dim)`, float16, of unit length.

        Raises:
            ValueError: if the index is damaged.
            OSError: if the index cannot be read, or another program keeps overwriting the file.
        """
        found = token, ids, vectors, _ = _unchanged(self.folder, self._loaded)
        path = self._arrays(token)
        if len(ids) >= _WORTH_ARRAYS and not path.exists():
            with suppress(OSError):  # a read-only folder, or a full disk
                for stale in self.folder.glob(self._arrays("*").name):
                    stale.unlink()
                with storage.atomic_file(path) as part, part.open("wb") as file:
                    np.save(file, ids)
                    np.save(file, vectors)
        return found

    def _arrays(self, token: str) -> Path:
        return self.folder / f"embeddings-{token}.npy"

    def _loaded(self, db: sqlite3.Connection) -> Loaded:
        self.about, token = _about(db, self.folder), _token(db)
        (num_unreadable,) = db.execute("SELECT count(*) FROM present WHERE problem IS NOT NULL").fetchone()
        with suppress(OSError, ValueError, EOFError), self._arrays(token).open("rb") as file:
            return token, np.load(file), np.load(file), num_unreadable
        with suppress(OSError):  # the array file is damaged or missing
            self._arrays(token).unlink()
        most = db.execute("SELECT count(*) FROM images").fetchone()[0]
        ids, vectors, count = np.empty(most, np.int64), np.empty((most, self.about.dim), np.float16), 0
        found = db.execute("SELECT id, embedding FROM embeddings WHERE id NOT IN (SELECT id FROM removed) ORDER BY id")
        while some := found.fetchmany(_BLOCK):
            end = count + len(some)
            ids[count:end] = [number for number, _ in some]
            vectors[count:end] = self._vectors([vector for _, vector in some])
            count = end
        return token, ids[:count], vectors[:count], num_unreadable

    def _vectors(self, blobs: Sequence[bytes]) -> NDArray[np.float16]:
        try:
            lengths = set(map(len, blobs))
        except TypeError:  # a number or a string in place of an embedding
            lengths = {-1}
        if lengths - {2 * self.about.dim}:
            raise ValueError(
                f"{self.folder / INDEX} is damaged: embeddings do not have {self.about.dim} dimensions; "
                "delete the folder and index the images again"
            )
        return np.frombuffer(b"".join(blobs), np.float16).reshape(-1, self.about.dim)

    def append(
        self,
        rows: Iterable[Row] = (),
        *,
        removed: Iterable[int] = (),
        finished: Iterable[FinishedFile] = (),
        inputs: Iterable[str] = (),
    ) -> None:
        """Add rows and mark other rows as removed, in one transaction.

        Raises:
            OSError: if the index cannot be written.
        """
        text = f"INSERT INTO images ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
        with self._changing() as db:
            db.executemany("INSERT OR IGNORE INTO removed VALUES (?)", ((number,) for number in removed))
            db.executemany("INSERT OR REPLACE INTO finished VALUES (?, ?, ?)", map(attrs.astuple, finished))
            db.executemany("INSERT OR IGNORE INTO inputs VALUES (?)", ((path,) for path in inputs))
            for row in rows:
                number = db.execute(text, [getattr(row, name) for name in COLUMNS]).lastrowid
                if row.embedding is not None:
                    vector = np.asarray(row.embedding, np.float16).reshape(self.about.dim).tobytes()
                    db.execute("INSERT INTO embeddings VALUES (?, ?)", (number, vector))

    def forget(self, paths: Iterable[str], *, inputs: Iterable[str] = ()) -> None:
        """Remove paths from the list of completely read files, and inputs from the list of inputs."""
        with self._changing() as db:
            db.executemany("DELETE FROM finished WHERE path = ?", ((path,) for path in paths))
            db.executemany("DELETE FROM inputs WHERE path = ?", ((path,) for path in inputs))

    def note_decode(self, decode: Decode) -> None:
        """Store the JPEG decoding mode, so that searches decode query images in the same mode."""
        if decode != self.about.decode:
            self.about = attrs.evolve(self.about, decode=decode)
            with self._changing() as db:
                db.execute("UPDATE state SET about = ?", (to_json(self.about),))

    def compact(self) -> None:
        """Delete the rows that are marked as removed; SQLite reuses their space."""
        with self._changing() as db:
            for table in ("images", "embeddings"):
                db.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM removed)")  # noqa: S608 - our own names
            db.execute("DELETE FROM removed")

    def begin_upgrade(self, about: IndexMetadata) -> list[int]:
        """Start or resume an upgrade to another model.

        Args:
            about: metadata that the index will have with the other model.

        Returns:
            The ids of the images without an embedding by the other model.
        """
        with self._changing(renew=False) as db:
            if db.execute("SELECT about FROM upgrade").fetchone() != (to_json(about),):
                db.execute("DELETE FROM upgrade")
                db.execute("DELETE FROM upgraded")
                db.execute("INSERT INTO upgrade VALUES (?)", (to_json(about),))
            text = "SELECT id FROM embeddings WHERE id NOT IN (SELECT id FROM upgraded) ORDER BY id"
            return [number for (number,) in db.execute(text)]

    def keep_upgraded(self, found: Iterable[tuple[int, NDArray[np.floating[Any]]]]) -> None:
        """Store embeddings by the other model."""
        with self._changing(renew=False) as db:
            rows = ((number, np.asarray(vector, np.float16).tobytes()) for number, vector in found)
            db.executemany("INSERT OR REPLACE INTO upgraded VALUES (?, ?)", rows)

    def adopt_upgraded(self, about: IndexMetadata) -> None:
        """Switch the index to the other model and its embeddings, in one transaction."""
        with self._changing() as db:
            db.execute("DELETE FROM upgraded WHERE id NOT IN (SELECT id FROM embeddings)")
            db.execute("DROP TABLE embeddings")
            db.execute("ALTER TABLE upgraded RENAME TO embeddings")
            db.execute(_UPGRADED)
            db.execute("DELETE FROM upgrade")
            db.execute("UPDATE state SET about = ?", (to_json(about),))
        self.about = about

    @contextmanager
    def _changing(self, *, renew: bool = True) -> Iterator[sqlite3.Connection]:
        assert self._is_held, "only the holder of the lock may write to an index"
        with write_transaction(self.folder, renew=renew) as db:
            yield db


def is_index(folder: Path) -> bool:
    """Return whether a folder has an index."""
    return (folder / INDEX).is_file()


@contextmanager
def _opened(path: Path, wait_seconds: float = _WAIT_SECONDS) -> Iterator[sqlite3.Connection]:
    """Yield a connection to an SQLite file.

    The connection uses a rollback journal, SQLite's default, which also works on network disks and for readers without
    write access.
    """
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    address = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=wait_seconds, isolation_level=None)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            yield db
    except sqlite3.Error as error:
        raise _named(error, path) from error


def _named(error: sqlite3.Error, path: Path) -> Exception:
    """Convert an SQLite error to an error with the file's problem and a remedy."""
    text = str(error)
    if "is full" in text:
        return OSError(errno.ENOSPC, f"{path} cannot be written: the disk is full; free some space and try again")
    if "locked" in text:
        return BlockingIOError(f"{path} has been in use by another program for {_WAIT_SECONDS:g} s; try again later")
    if path.with_name(f"{path.name}-journal").exists() and not os.access(path, os.W_OK):
        return OSError(
            f"a job that wrote to {path} was killed, and you have no write access to repair the index; ask a user with "
            "write access to open the index once: `mobileclip search`"
        )
    if isinstance(error, sqlite3.OperationalError) and not text.startswith("no such"):
        return OSError(f"{path} cannot be opened: {text}; check for a full disk, and for write access to the folder")
    return ValueError(f"{path} is damaged ({text}); delete the folder and index the images again")


def _unchanged(folder: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    """Return the result of a read function; read again if another program overwrites the file during reading."""

    def stamp() -> tuple[int, int, int]:
        status = (folder / INDEX).stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def is_settled() -> bool:
        return not 0 <= time.time_ns() - stamp()[-1] < _SETTLED_NS

    for _ in range(_TRIES):
        before, settled = stamp(), is_settled()
        try:
            with read_transaction(folder) as lock:
                lock.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                # From here on, no job of this library writes. This connection may have read an inconsistent state.
                if not is_settled():
                    time.sleep(_SETTLED_NS / 1e9)
                before, settled = stamp(), is_settled()
                try:
                    with read_transaction(folder, wait_seconds=0) as db:
                        found = read(db)
                        if settled and stamp() == before:
                            return found
                except BlockingIOError:
                    continue  # a job waits for the first connection to end; until then, SQLite refuses new readers
        except Exception:  # inconsistent pages may lead to any error
            if settled and stamp() == before:
                raise
            time.sleep(_SETTLED_NS / 1e9)
    raise OSError(f"another program is overwriting {folder / INDEX}; try again later")


def _about(db: sqlite3.Connection, folder: Path) -> IndexMetadata:
    ((text,),) = db.execute("SELECT about FROM state").fetchall() or [("",)]
    try:
        return from_json(text, IndexMetadata)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / INDEX} is damaged, or of another version of this library: {error}; delete the folder and "
            "index the images again"
        ) from None


def _token(db: sqlite3.Connection) -> str:
    ((token,),) = db.execute("SELECT token FROM tokens ORDER BY number DESC LIMIT 1").fetchall() or [("",)]
    return str(token)


def _renew_token(db: sqlite3.Connection) -> None:
    number = db.execute("INSERT INTO tokens (token) VALUES (?)", (os.urandom(16).hex(),)).lastrowid or 0
    db.execute("DELETE FROM tokens WHERE number <= ?", (number - _MOST_TOKENS,))


def _selected(
    db: sqlite3.Connection, table: str, columns: Sequence[str], ids: Sequence[int] | None
) -> list[tuple[Any, ...]]:
    where = "" if ids is None else "WHERE id IN (SELECT value FROM json_each(?))"
    given = () if ids is None else (json.dumps([int(number) for number in ids]),)
    return db.execute(f"SELECT {', '.join(columns)} FROM {table} {where} ORDER BY id", given).fetchall()  # noqa: S608
