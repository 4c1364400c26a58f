"""The rows of an index in SQLite, with their embeddings beside it: written by one job at a time, while others read."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store import vectors as files
from mobileclip.collections.store.about import About, FinishedFile
from mobileclip.collections.store.database import INDEX, is_on_network, opened, told
from mobileclip.collections.store.old import MANIFEST, Elsewhere, find_elsewhere, is_old_file
from mobileclip.collections.store.rows import COLUMNS, SCHEMA, SUMS, Embedded, Row, columns_of, numbers_of, selected
from mobileclip.collections.store.small import Small, read_small
from mobileclip.inputs import Decode, VectorKind
from mobileclip.serialization import from_json, to_json

# Rows that are written at once, and embeddings that are copied at once.
_BLOCK = 4096
# The embeddings are written anew without those that were removed when these are so large a part of them.
_MOST_REMOVED = 0.25
# How often a reader begins again since the embeddings were written anew meanwhile.
_ATTEMPTS = 10


@attrs.define(eq=False)
class Store:
    """The rows of an index.

    Args:
        folder: of the index.
        about: what the index is of.
        old: what is there, where it is in another form.
    """

    folder: Path
    about: About
    old: Elsewhere | None = None
    _copy: Path | None = attrs.field(default=None, init=False)
    _db: sqlite3.Connection | None = attrs.field(default=None, init=False)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Return the index in a folder, or that of a Parquet file.

        Raises:
            FileNotFoundError: if there is no index.
            ValueError: if it is damaged, or of a later version of this library.
        """
        if not (folder / INDEX).is_file():
            if (old := find_elsewhere(folder)) is not None:
                return cls(folder, old.about, old)
            raise FileNotFoundError(
                f"{folder} is no index: there is no {INDEX} in it; make one: `mobileclip index FOLDER --index {folder}`"
            )
        with opened(folder / INDEX) as db:
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
        """Return a new, empty index.

        Raises:
            FileExistsError: if the folder holds something.
            OSError: if nothing can be written there.
        """
        if folder.exists() and storage.holds_anything(folder):
            raise FileExistsError(f"{folder} holds something already; open it, or choose another folder")
        with storage.exclusive(folder):
            _make(folder, about)
        return cls(folder, about)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the index while rows are written; nobody else can. An old one is brought over first.

        Raises:
            ValueError: if another job is writing, or embeddings are not what was written.
            OSError: if it cannot be written.
        """
        with storage.exclusive(self.folder):
            if (old := Store.open(self.folder).old) is not None:
                _make(self.folder, old.about, old)
            self.about, self.old = Store.open(self.folder).about, None
            with opened(self.folder / INDEX, write=True) as db:
                self._db = db
                try:
                    self._sweep()
                    self._sum_up()
                    self.verify()
                    yield
                finally:
                    self._db = None

    def require_own_form(self) -> None:
        """Refuse an index in another form: what stands beside the rows cannot be written there.

        Raises:
            ValueError: if it is one.
        """
        if self._elsewhere() is not None:
            raise ValueError(
                f"{self.folder} is an index of an older version, or was exported: bring it up to date with mobileclip "
                "index, or merge it into a new one, and then give it tags and concepts"
            )

    def _elsewhere(self) -> Elsewhere | None:
        """Return what is there in another form, as long as nobody has brought it over."""
        return None if self.old is None or (self.folder / INDEX).is_file() else self.old

    @contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, Path]]:
        """Yield a connection, and the folder of the files; of an old index, of a copy that is made of it once."""
        place = self.folder
        if (old := self._elsewhere()) is not None:
            if self._copy is None:
                copy = Path(tempfile.mkdtemp(prefix="mobileclip-"))
                weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
                _make(copy, self.about, old)
                self._copy = copy
            place = self._copy
        with opened(place / INDEX) as db:
            yield db, place

    @property
    def inputs(self) -> tuple[str, ...]:
        """What was indexed: files, folders and shards, in full."""
        if (old := self._elsewhere()) is not None:
            return old.inputs
        with self._reading() as (db, _):
            return tuple(path for (path,) in db.execute("SELECT path FROM inputs ORDER BY rowid"))

    @property
    def finished(self) -> tuple[FinishedFile, ...]:
        """Files of many pictures that need not be read again."""
        with self._reading() as (db, _):
            rows = db.execute("SELECT path, num_bytes, mtime_ns FROM finished ORDER BY rowid").fetchall()
        return tuple(FinishedFile(path=path, num_bytes=size, mtime_ns=time) for path, size, time in rows)

    @property
    def version(self) -> tuple[int, int]:
        """What is another one whenever the index was written to, or made anew."""
        if self._elsewhere() is not None:
            return 0, 0
        with self._reading() as (db, place):
            return int(db.execute("SELECT changes FROM state").fetchone()[0]), (place / INDEX).stat().st_ino

    def values(self, *columns: str, ids: Sequence[int] | None = None) -> list[tuple[Any, ...]]:
        """Return what some columns have of each row, in the order of the ids.

        Args:
            columns: of `COLUMNS`.
            ids: of the rows; of those that were removed, nothing is returned. None for all.
        """
        with self._reading() as (db, _):
            return selected(db, columns, ids)

    def column(self, name: str) -> list[Any]:
        """Return what a column has of each picture, in the order of the ids."""
        with self._reading() as (db, _):
            return columns_of(db, name)[0]

    def blocks(self, ids: Sequence[int] | None = None) -> Iterator[list[Embedded]]:
        """Yield rows with their embeddings, those too that the job that is writing has removed; None for all others.

        Raises:
            ValueError: if they became those of another model meanwhile.
        """
        ids = [number for (number,) in self.values("id")] if ids is None else ids
        identity = self.about.identity
        for start in range(0, len(ids), _BLOCK):
            block, columns = ids[start : start + _BLOCK], ("place", *COLUMNS)
            with self._opened() as (db, _, vectors):
                if self.about.identity != identity:
                    raise ValueError(f"{self.folder} was upgraded to {self.about.model} meanwhile; run this again")
                found = [one for table in ("pictures", "removed") for one in selected(db, columns, block, table)]
                embedded = [(None if one[0] is None else vectors[one[0]], one[1:]) for one in found]
            yield embedded

    def rows(self, ids: Sequence[int] | None = None) -> Iterator[Row]:
        """Yield what `blocks` does, one by one."""
        return map(Row.of, chain.from_iterable(self.blocks(ids)))

    def verify(self) -> None:
        """Compare all embeddings with what was written.

        Raises:
            ValueError: if some are others.
        """
        with self._opened() as (db, name, vectors):
            files.check(self.folder / name, vectors, files.sums_in(db, name))

    def embeddings(self) -> tuple[NDArray[np.int64], files.Vectors, int, Small | None]:
        """Return the ids of the pictures, rising, their embeddings, how many files cannot be read, and small vectors.

        Of the embeddings, those that were written last are compared with what was written. On a disk of another machine
        they are copied: a process that reads a mapped file is ended (SIGBUS) when that machine makes it shorter. With
        small vectors they are read as they are asked for.

        Raises:
            ValueError: if the index is damaged.
            OSError: if it cannot be read.
        """
        with self._opened() as (db, name, vectors):
            files.check(self.folder / name, vectors, files.sums_in(db, name)[-1:])
            ids, places = numbers_of(db, "id", "place")
            (num_unreadable,) = db.execute("SELECT count(*) FROM pictures WHERE place IS NULL").fetchone()
            if len(places) and (places.min() < 0 or places.max() >= len(vectors)):
                raise ValueError(
                    f"{self.folder} is damaged: its rows have other embeddings than there are; index the pictures again"
                )
            small = None
            if self.about.vectors != "float16":
                small = read_small(db, self.folder, name, places, self.about.dim)
            if small is not None:
                # Pages of a mapped file would count as memory of this process.
                return ids, files.Chosen(self.folder / name, places, self.about.dim), num_unreadable, small
            # Nothing is read yet where none was removed.
            if not is_on_network(self.folder) and np.array_equal(places, np.arange(len(vectors))):
                return ids, vectors, num_unreadable, None
            return ids, vectors[places], num_unreadable, None

    def places(self) -> NDArray[np.int64]:
        """Return where the embeddings of all pictures are in their file, rising; the caller holds the index."""
        with self._reading() as (db, _):
            return np.sort(numbers_of(db, "place")[0])

    def vectors(self) -> tuple[str, NDArray[np.float16]]:
        """Return the file of embeddings, and all that are in it, those of removed rows too; the caller holds the index.

        Raises:
            ValueError: if the index is damaged.
        """
        with self._opened() as (_, name, vectors):
            return name, vectors

    @contextmanager
    def _opened(self) -> Iterator[tuple[sqlite3.Connection, str, NDArray[np.float16]]]:
        """Yield a connection, the name of the file of embeddings, and all of these, of one moment."""
        for _ in range(_ATTEMPTS):
            with self._reading() as (db, place):
                name, count, about = db.execute("SELECT vectors, num_vectors, about FROM state").fetchone()
                # An upgrade that has ended meanwhile has another model's embeddings.
                if about != to_json(self.about):
                    self.about = from_json(about, About)
                if not files.is_vectors_name(name):
                    raise ValueError(
                        f"{self.folder} is damaged: it names embeddings {name!r}; index the pictures again"
                    )
                try:
                    vectors = files.mapped(place / name, count, self.about.dim)
                except FileNotFoundError:
                    continue
                yield db, name, vectors
                return
        raise ValueError(f"{self.folder} is damaged: {name} is gone; delete the folder, and index the pictures again")

    def append(
        self,
        rows: Iterable[Row] = (),
        *,
        blocks: Iterable[list[Embedded]] = (),
        removed: Iterable[int] = (),
        finished: Iterable[FinishedFile] = (),
        inputs: Iterable[str] = (),
    ) -> None:
        """Add rows and remove others, all of it or nothing.

        Args:
            rows: new ones.
            blocks: further ones, as `blocks` yields them, without ids.
            removed: ids of rows that are there.
            finished: files of many pictures that were read to their end.
            inputs: what was indexed, beside what was before.

        Raises:
            OSError: if nothing can be written.
        """
        with self._transaction() as db:
            ids = [(number,) for number in removed]
            db.executemany("INSERT OR IGNORE INTO removed SELECT * FROM pictures WHERE id = ?", ids)
            db.executemany("DELETE FROM pictures WHERE id = ?", ids)
            db.executemany("INSERT OR REPLACE INTO finished VALUES (?, ?, ?)", map(attrs.astuple, finished))
            db.executemany("INSERT OR IGNORE INTO inputs VALUES (?)", ((path,) for path in inputs))
            files.insert(db, chain(files.blocks_of(rows), blocks), self.folder, self.about.dim)

    def forget(self, paths: Iterable[str], *, inputs: Iterable[str] = ()) -> None:
        """Drop files of many pictures from those that are finished, and inputs from those that were indexed."""
        with self._transaction() as db:
            db.executemany("DELETE FROM finished WHERE path = ?", ((path,) for path in paths))
            db.executemany("DELETE FROM inputs WHERE path = ?", ((path,) for path in inputs))

    def choose_vectors(self, kind: VectorKind) -> None:
        """Remember how embeddings are to be held in memory."""
        if kind != self.about.vectors:
            self.about = attrs.evolve(self.about, vectors=kind)
            with self._transaction() as db:
                db.execute("UPDATE state SET about = ?", (to_json(self.about),))

    def note_decode(self, decode: Decode) -> None:
        """Remember how pictures are read, so that one that is searched with is read alike."""
        if decode != self.about.decode:
            self.about = attrs.evolve(self.about, decode=decode)
            with self._transaction() as db:
                db.execute("UPDATE state SET about = ?", (to_json(self.about),))

    def compact(self) -> None:
        """Drop what was removed, and write the embeddings anew without it, if it is much."""
        with self._transaction() as db:
            db.execute("DELETE FROM removed")
            name, count = db.execute("SELECT vectors, num_vectors FROM state").fetchone()
            found = db.execute("SELECT id, place FROM pictures WHERE place IS NOT NULL ORDER BY id").fetchall()
            if count - len(found) <= _MOST_REMOVED * count:
                return
            before = files.mapped(self.folder / name, count, self.about.dim)
            places = np.array(found, np.int64).reshape(-1, 2)[:, 1]
            blocks = (before[places[start : start + _BLOCK]] for start in range(0, len(places), _BLOCK))
            files.write_anew(db, self.folder, [number for number, _ in found], blocks)
        self._sweep()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection whose writes are all there when the block ends, or none is."""
        assert self._db is not None, "an index is written to by whoever holds it"
        before = self._db.total_changes
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            if self._db.total_changes != before:
                self._db.execute("UPDATE state SET changes = changes + 1")
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _sum_up(self) -> None:
        """Note sums of embeddings that have none, as those of an index of before."""
        assert self._db is not None, "an index is written to by whoever holds it"
        self._db.execute(SUMS)
        with self._opened() as (db, name, vectors):
            first = sum(count for _, count, _ in files.sums_in(db, name))
            new = [(name, *one) for one in files.sums_of(vectors[first:], first)]
        if new:
            with self._transaction() as db:
                db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", new)

    def _sweep(self) -> None:
        """Remove embeddings that were written anew, those of a job that was killed, and an index of before."""
        assert self._db is not None, "an index is written to by whoever holds it"
        ((name,),) = self._db.execute("SELECT vectors FROM state")
        for path in self.folder.iterdir():
            if is_old_file(path.name) or (files.is_vectors_name(path.name) and path.name != name):
                with suppress(OSError):
                    path.unlink()


def is_index(folder: Path) -> bool:
    """Return whether a folder is an index."""
    return (folder / INDEX).is_file() or (folder / MANIFEST).is_file()


def _make(folder: Path, about: About, old: Elsewhere | None = None) -> None:
    """Make an index, with the rows of one in another form; it appears whole or not at all."""
    with storage.atomic_file(folder / INDEX) as path, told(folder / INDEX):
        db = sqlite3.connect(path, isolation_level=None)
        try:
            # What goes wrong here leaves no file at all.
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("BEGIN")
            for statement in (*SCHEMA.split(";"), SUMS):
                db.execute(statement)
            db.execute("INSERT INTO state VALUES (?, ?, 0, 0)", (to_json(about), files.FIRST))
            if old is not None:
                # Ids of rows that were removed are not given again.
                db.execute("INSERT INTO sqlite_sequence VALUES ('pictures', ?)", (old.next_id - 1,))
                finished = map(attrs.astuple, old.finished)
                db.executemany("INSERT INTO finished VALUES (?, ?, ?)", finished)
                db.executemany("INSERT INTO inputs VALUES (?)", ((one,) for one in old.inputs))
                files.insert(db, files.blocks_of(old.rows()), folder, about.dim)
            db.execute("COMMIT")
        finally:
            db.close()
