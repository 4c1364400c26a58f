"""An index: one SQLite file of rows and embeddings, written by one job at a time, while others read."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.about import About, FinishedFile
from mobileclip.collections.store.database import INDEX, changing, reading
from mobileclip.collections.store.parquet import SUFFIX, read_about, read_rows
from mobileclip.collections.store.rows import COLUMNS, SCHEMA, Row
from mobileclip.inputs import Decode
from mobileclip.serialization import from_json, to_json

_BLOCK = 4096


@attrs.define(eq=False)
class Store:
    """The rows of an index."""

    folder: Path
    about: About
    _held: bool = attrs.field(default=False, init=False)
    _exported: Path | None = attrs.field(default=None, init=False)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Return the index in a folder, or a copy of one that was exported."""
        if folder.suffix == SUFFIX and folder.is_file():
            return copy_of_parquet(folder)
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(
                f"{folder} is no index: there is no {INDEX} in it; make one: `mobileclip index FOLDER --index {folder}`"
            )
        with reading(folder) as db:
            ((text,),) = db.execute("SELECT about FROM state")
        try:
            return cls(folder, from_json(text, About))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{folder / INDEX} is damaged, or of another version of this library: {error}; delete the folder, and "
                "index the pictures again"
            ) from None

    @classmethod
    def create(cls, folder: Path, about: About) -> Store:
        """Return a new, empty index; it appears whole or not at all."""
        if folder.exists() and storage.holds_anything(folder):
            raise FileExistsError(f"{folder} holds something already; open it, or choose another folder")
        with storage.exclusive(folder), storage.atomic_file(folder / INDEX) as path:
            db = sqlite3.connect(path)
            db.executescript(SCHEMA)
            with db:
                db.execute("INSERT INTO state VALUES (?, 0)", (to_json(about),))
            db.close()
        return cls(folder, about)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the index while rows are written; nobody else can."""
        if self._exported is not None:
            raise OSError(f"{self._exported} cannot be written to; merge it into an index")
        with storage.exclusive(self.folder):
            self.about, self._held = Store.open(self.folder).about, True
            try:
                yield
            finally:
                self._held = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """What was indexed: files, folders and shards, in full."""
        with reading(self.folder) as db:
            return tuple(path for (path,) in db.execute("SELECT path FROM inputs ORDER BY rowid"))

    @property
    def finished(self) -> tuple[FinishedFile, ...]:
        """Files of many pictures that need not be read again."""
        with reading(self.folder) as db:
            rows = db.execute("SELECT path, num_bytes, mtime_ns FROM finished ORDER BY rowid").fetchall()
        return tuple(FinishedFile(path=path, num_bytes=size, mtime_ns=time) for path, size, time in rows)

    @property
    def version(self) -> tuple[int, int]:
        """What is another one whenever the index was written to, or made anew."""
        with reading(self.folder) as db:
            return int(db.execute("SELECT changes FROM state").fetchone()[0]), (self.folder / INDEX).stat().st_ino

    def values(self, *columns: str, ids: Sequence[int] | None = None) -> list[tuple[Any, ...]]:
        """Return what some columns have of each row that is there, in the order of the ids."""
        with reading(self.folder) as db:
            return _selected(db, "present", columns, ids)

    def column(self, name: str) -> list[Any]:
        """Return what a column has of each picture, in the order of the ids."""
        with reading(self.folder) as db:
            return [value for (value,) in db.execute(f"SELECT {name} FROM present WHERE problem IS NULL ORDER BY id")]  # noqa: S608

    def rows(self, ids: Sequence[int] | None = None) -> Iterator[Row]:
        """Yield rows with their embeddings, those too that the job that is writing has removed; None for all others."""
        ids = [number for (number,) in self.values("id")] if ids is None else ids
        names = (*(f"pictures.{one}" for one in COLUMNS), "embedding")
        for start in range(0, len(ids), _BLOCK):
            with reading(self.folder) as db:
                found = _selected(db, "pictures LEFT JOIN embeddings USING (id)", names, ids[start : start + _BLOCK])
            for *values, vector in found:
                embedding = None if vector is None else np.frombuffer(vector, np.float16)
                yield Row(embedding=embedding, **dict(zip(COLUMNS, values, strict=True)))

    def embeddings(self) -> tuple[NDArray[np.int64], NDArray[np.float16], int]:
        """Return the ids of the pictures, rising, their embeddings, and how many files cannot be read."""
        with reading(self.folder) as db:
            text = "SELECT id, embedding FROM embeddings WHERE id NOT IN (SELECT id FROM removed) ORDER BY id"
            found = db.execute(text).fetchall()
            (num_unreadable,) = db.execute("SELECT count(*) FROM present WHERE problem IS NOT NULL").fetchone()
            self.about = from_json(db.execute("SELECT about FROM state").fetchone()[0], About)
        if any(len(vector) != 2 * self.about.dim for _, vector in found):
            raise ValueError(f"{self.folder} is damaged: embeddings have other lengths; index the pictures again")
        vectors = np.frombuffer(b"".join(vector for _, vector in found), np.float16).reshape(-1, self.about.dim)
        return np.array([number for number, _ in found], np.int64), vectors, num_unreadable

    def append(
        self,
        rows: Iterable[Row] = (),
        *,
        removed: Iterable[int] = (),
        finished: Iterable[FinishedFile] = (),
        inputs: Iterable[str] = (),
    ) -> None:
        """Add rows and mark others as removed, all of it or nothing."""
        text = f"INSERT INTO pictures ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
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
        """Drop files of many pictures from those that are finished, and inputs from those that were indexed."""
        with self._changing() as db:
            db.executemany("DELETE FROM finished WHERE path = ?", ((path,) for path in paths))
            db.executemany("DELETE FROM inputs WHERE path = ?", ((path,) for path in inputs))

    def note_decode(self, decode: Decode) -> None:
        """Remember how pictures are read, so that one that is searched with is read alike."""
        if decode != self.about.decode:
            self.about = attrs.evolve(self.about, decode=decode)
            with self._changing() as db:
                db.execute("UPDATE state SET about = ?", (to_json(self.about),))

    def compact(self) -> None:
        """Drop what was removed; SQLite gives its room to what comes."""
        with self._changing() as db:
            for table in ("pictures", "embeddings"):
                db.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM removed)")  # noqa: S608 - ours
            db.execute("DELETE FROM removed")

    def begin_upgrade(self, about: About) -> list[int]:
        """Keep embeddings of another model beside, or go on with them; return the ids that have none yet."""
        with self._changing() as db:
            if db.execute("SELECT about FROM upgrade").fetchone() != (to_json(about),):
                db.execute("DELETE FROM upgrade")
                db.execute("DELETE FROM upgraded")
                db.execute("INSERT INTO upgrade VALUES (?)", (to_json(about),))
            text = "SELECT id FROM embeddings WHERE id NOT IN (SELECT id FROM upgraded) ORDER BY id"
            return [number for (number,) in db.execute(text)]

    def keep_upgraded(self, found: Iterable[tuple[int, NDArray[np.floating[Any]]]]) -> None:
        """Keep embeddings of the other model."""
        with self._changing() as db:
            rows = ((number, np.asarray(vector, np.float16).tobytes()) for number, vector in found)
            db.executemany("INSERT OR REPLACE INTO upgraded VALUES (?, ?)", rows)

    def adopt_upgraded(self, about: About) -> None:
        """Let the index be of the other model, in one transaction."""
        with self._changing() as db:
            db.execute("DELETE FROM embeddings")
            db.execute("INSERT INTO embeddings SELECT * FROM upgraded WHERE id IN (SELECT id FROM pictures)")
            db.execute("DELETE FROM upgraded")
            db.execute("DELETE FROM upgrade")
            db.execute("UPDATE state SET about = ?", (to_json(about),))
        self.about = about

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        assert self._held, "an index is written to by whoever holds it"
        with changing(self.folder) as db:
            yield db


def copy_of_parquet(file: Path) -> Store:
    """Return a new index of rows that were exported, which goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="mobileclip-"))
    store = Store.create(folder, read_about(file))
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    with store.writing():
        store.append(attrs.evolve(row, id=None) for row in read_rows(file, store.about.dim, str(file)))
    store._exported = file  # noqa: SLF001 - of this module
    return store


def is_index(folder: Path) -> bool:
    """Return whether a folder is an index."""
    return (folder / INDEX).is_file()


def _selected(
    db: sqlite3.Connection, table: str, columns: Sequence[str], ids: Sequence[int] | None
) -> list[tuple[Any, ...]]:
    where = "" if ids is None else "WHERE id IN (SELECT value FROM json_each(?))"
    given = () if ids is None else (json.dumps([int(number) for number in ids]),)
    return db.execute(f"SELECT {', '.join(columns)} FROM {table} {where} ORDER BY id", given).fetchall()  # noqa: S608
