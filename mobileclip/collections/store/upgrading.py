"""The second space of an index that is brought to another model: embeddings by the rows' ids, until all are there.

They are in tables of their own beside the rows, so that any process adds to them without holding the index.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip.collections.store.about import About
from mobileclip.collections.store.concepts import ids_of
from mobileclip.collections.store.database import INDEX, changing, has_table, having
from mobileclip.collections.store.small import forget_small
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.vectors import write_anew
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

Vector = NDArray[np.float32]

# Embeddings that are copied at once.
_BLOCK = 4096
_TABLE = "upgrade"
_TABLES = """
CREATE TABLE upgrade (about TEXT NOT NULL, measured TEXT NOT NULL);
CREATE TABLE upgraded (
    number INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, sha256 TEXT NOT NULL, time REAL, embedding BLOB NOT NULL);
CREATE INDEX upgraded_content ON upgraded (sha256)
"""
# A picture that was moved or copied has another id, and the same embedding.
_RECOGNISE = """
INSERT INTO upgraded (id, sha256, time, embedding)
SELECT pictures.id, pictures.sha256, pictures.time, min(upgraded.embedding) FROM pictures
JOIN upgraded ON upgraded.sha256 = pictures.sha256 AND upgraded.time IS pictures.time
WHERE pictures.place IS NOT NULL AND pictures.id NOT IN (SELECT id FROM upgraded) GROUP BY pictures.id
"""
_LEFT = "SELECT id FROM pictures WHERE place IS NOT NULL AND id NOT IN (SELECT id FROM upgraded) ORDER BY id"
_JOINED = """
SELECT upgraded.embedding FROM pictures LEFT JOIN upgraded USING (id) WHERE pictures.place IS NOT NULL
ORDER BY pictures.id
"""


def _share(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} is {value}, expected a share from 0 to 1")


@attrs.frozen(kw_only=True, field_transformer=strict)
class Measured:
    """Two models on some pictures of a collection.

    Args:
        num_pictures: that both have encoded.
        agreement: the share of the ten nearest pictures of each that both models find.
        by: what they were measured with: the captions beside the pictures, the folders that these are in, or nothing.
        num_queries: what was asked of both.
        old: the share that the model of before answers: of captions, those whose picture is among the first five; of
            pictures, those whose nearest one is in the same folder. None without either.
        new: the same of the other model.
        error: the standard error of the difference.

    Raises:
        ValueError: if a value is none of these.
    """

    num_pictures: int = attrs.field(validator=validators.ge(0))
    agreement: float = attrs.field(validator=_share)
    by: str | None = None
    num_queries: int = 0
    old: float | None = attrs.field(default=None, validator=_share)
    new: float | None = attrs.field(default=None, validator=_share)
    error: float = 0.0

    @property
    def is_worse(self) -> bool:
        """Whether the other model is the worse one, by more than chance explains in one of twenty cases."""
        return self.old is not None and self.new is not None and self.new < self.old - 1.645 * self.error

    def __str__(self) -> str:
        """Say it in a line."""
        agreed = f"both models agree on {self.agreement:.0%} of the nearest pictures ({self.num_pictures:,} compared)"
        if self.old is None or self.new is None:
            return f"{agreed}; there are no captions and no folders that would tell which is better"
        return (
            f"{agreed}; by {self.num_queries:,} {self.by}, {self.old:.1%} with the model of before and {self.new:.1%} "
            f"with the new one, ± {self.error:.1%}"
        )


@attrs.frozen(kw_only=True)
class UpgradeState:
    """How far an upgrade is.

    Args:
        about: what the new space is of.
        measured: both models on the collection.
        num_done: pictures that are in the new space.
        num_pictures: all there are.
    """

    about: About
    measured: Measured
    num_done: int
    num_pictures: int

    def __str__(self) -> str:
        """Say it in a line."""
        share = self.num_done / max(1, self.num_pictures)
        return f"{self.num_done:,} of {self.num_pictures:,} pictures ({share:.0%}) are encoded by {self.about.model}"


@attrs.frozen(kw_only=True, eq=False)
class NewSpace:
    """The new space of an index; each call has a connection of its own, and any process may make it.

    Args:
        folder: of the index.
        about: what the space is of.
    """

    folder: Path
    about: About

    @classmethod
    def of(cls, store: Store) -> NewSpace | None:
        """Return the new space of an index, if it has one.

        Raises:
            ValueError: if the index is damaged, or of a later version of this library.
            OSError: if it cannot be read.
        """
        with having(store.folder, _TABLE) as db:
            text = None if db is None else db.execute("SELECT about FROM upgrade").fetchone()
        return None if text is None else cls(folder=store.folder, about=from_json(text[0], About))

    @classmethod
    def begin(cls, store: Store, about: About, measured: Measured) -> NewSpace:
        """Give an index a second space, which is empty; the caller holds the index.

        Raises:
            ValueError: if it has one already.
            OSError: if it cannot be written.
        """
        cls.require_none(store)
        with changing(store.folder) as db:
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO upgrade VALUES (?, ?)", (to_json(about), to_json(measured)))
            db.execute("UPDATE state SET changes = changes + 1")
        return cls(folder=store.folder, about=about)

    @classmethod
    def require_none(cls, store: Store) -> None:
        """Refuse an index that has a second space.

        Raises:
            ValueError: if it has.
        """
        if (before := cls.of(store)) is not None:
            raise ValueError(
                f"the index {store.folder} is being upgraded to {before.about.model} already; finish that, or drop it: "
                f"`mobileclip upgrade {store.folder} --cancel`"
            )

    def measured(self) -> Measured:
        """Return how both models did when it was begun."""
        with having(self.folder, _TABLE) as db:
            assert db is not None, "whoever holds the index asks"
            return from_json(db.execute("SELECT measured FROM upgrade").fetchone()[0], Measured)

    def state(self) -> UpgradeState | None:
        """Return how far it is; None if it is no more."""
        with having(self.folder, _TABLE) as db:
            if db is None:
                return None
            ((measured,),) = db.execute("SELECT measured FROM upgrade")
            ((total, left),) = db.execute(
                f"SELECT (SELECT count(*) FROM pictures WHERE place IS NOT NULL), (SELECT count(*) FROM ({_LEFT}))"  # noqa: S608 - ours
            )
        return UpgradeState(
            about=self.about, measured=from_json(measured, Measured), num_done=total - left, num_pictures=total
        )

    def left(self) -> list[int]:
        """Return the ids of the pictures that are in the old space alone."""
        with having(self.folder, _TABLE) as db:
            return [] if db is None else [number for (number,) in db.execute(_LEFT)]

    def left_of(self, ids: Sequence[int]) -> list[int]:
        """Return which of some pictures are in the old space alone.

        Args:
            ids: of rows.
        """
        text = "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM upgraded)"
        with having(self.folder, _TABLE) as db:
            return [] if db is None else [number for (number,) in db.execute(text, (json.dumps(list(ids)),))]

    def keep(self, rows: Iterable[tuple[int, str, float | None, Vector]]) -> None:
        """Add embeddings, each once, if the space is there still.

        Args:
            rows: ids, hashes, times in videos, and embeddings of unit length.

        Raises:
            OSError: if they cannot be written.
        """
        values = ((number, sha256, time, vector.astype(np.float16).tobytes()) for number, sha256, time, vector in rows)
        with changing(self.folder) as db:
            if self._is_there(db):
                db.executemany(
                    "INSERT OR IGNORE INTO upgraded (id, sha256, time, embedding) VALUES (?, ?, ?, ?)", values
                )

    def recognise(self) -> None:
        """Give pictures whose content has an embedding that one, as those that were moved."""
        with changing(self.folder) as db:
            if self._is_there(db):
                db.execute(_RECOGNISE)

    def since(self, number: int) -> tuple[int, NDArray[np.int64], NDArray[np.float16]]:
        """Return some of what was added behind a number: the last number, ids of rows, and their embeddings.

        Args:
            number: that this has returned before; 0 for all.

        Raises:
            ValueError: if the index is damaged.
        """
        with having(self.folder, _TABLE) as db:
            found: list[tuple[int, int, bytes]] = []
            if db is not None and self._is_there(db):
                text = "SELECT number, id, embedding FROM upgraded WHERE number > ? ORDER BY number LIMIT ?"
                found = db.execute(text, (number, _BLOCK)).fetchall()
        last = found[-1][0] if found else number
        return last, np.array([one for _, one, _ in found], np.int64), self._array([one for *_, one in found])

    def copy_to(self, store: Store) -> None:
        """Give a copy of the index the same space, with what is in it of the copy's pictures; the caller holds it.

        Raises:
            ValueError: if it has one already, or this index is damaged.
            OSError: if it cannot be written.
        """
        copied, number = NewSpace.begin(store, self.about, self.measured()), 0
        text = "SELECT number, sha256, time, embedding FROM upgraded WHERE number > ? ORDER BY number LIMIT ?"
        while True:
            with having(self.folder, _TABLE) as db:
                found = [] if db is None else db.execute(text, (number, _BLOCK)).fetchall()
            if not found:
                break
            number, vectors = found[-1][0], self._array([blob for *_, blob in found])
            ids = ids_of(store.folder, [(sha256, time) for _, sha256, time, _ in found])
            rows = zip(found, vectors, strict=True)
            copied.keep((ids[row[1:3]], *row[1:3], vector) for row, vector in rows if row[1:3] in ids)
        copied.recognise()

    def adopt(self) -> bool:
        """Put it in the place of the old space, and return whether all pictures are in it; the caller holds the index.

        Raises:
            ValueError: if the index is damaged.
            OSError: if it cannot be written.
        """
        with changing(self.folder) as db:
            if not self._is_there(db) or db.execute(f"{_LEFT} LIMIT 1").fetchone() is not None:
                return False
            ids = [number for (number,) in db.execute("SELECT id FROM pictures WHERE place IS NOT NULL ORDER BY id")]
            db.execute("DELETE FROM removed")
            write_anew(db, self.folder, ids, self._blocks(db.execute(_JOINED)))
            before = from_json(db.execute("SELECT about FROM state").fetchone()[0], About)
            after = attrs.evolve(self.about, vectors=before.vectors, decode=before.decode)
            db.execute("UPDATE state SET about = ?", (to_json(after),))
            forget_small(db)
            _drop(db)
        return True

    def cancel(self) -> None:
        """Drop it; the caller holds the index."""
        with changing(self.folder) as db:
            _drop(db)

    def _is_there(self, db: sqlite3.Connection) -> bool:
        return has_table(db, _TABLE) and db.execute("SELECT about FROM upgrade").fetchone() == (to_json(self.about),)

    def _blocks(self, found: Iterator[tuple[bytes]]) -> Iterator[NDArray[np.float16]]:
        while block := [one for (one,) in islice(found, _BLOCK)]:
            yield self._array(block)

    def _array(self, blobs: Sequence[bytes]) -> NDArray[np.float16]:
        if any(len(one) != 2 * self.about.dim for one in blobs):
            raise ValueError(
                f"{self.folder / INDEX} is damaged: an embedding has another length than {self.about.dim}; drop the "
                f"new space: `mobileclip upgrade {self.folder} --cancel`"
            )
        return np.frombuffer(b"".join(blobs), np.float16).reshape(-1, self.about.dim)


def _drop(db: sqlite3.Connection) -> None:
    db.execute("DROP TABLE IF EXISTS upgraded")
    db.execute("DROP TABLE IF EXISTS upgrade")
    db.execute("UPDATE state SET changes = changes + 1")
