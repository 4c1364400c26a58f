"""Rows of an index: what is known of a picture, and the tables that keep it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

# Rows that are read at once.
_BLOCK = 4096
# Numbers come first: SQLite reads a row from its beginning on.
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
"""Of every row, beside its embedding."""

Values = tuple[Any, ...]
"""What `COLUMNS` have of a row."""
Embedded = tuple[NDArray[np.floating[Any]] | None, Values]
"""A row as the tables have it, behind its embedding."""

EXACT = {name: f"nullif(quote({name}), 'NULL')" for name, kind in _TYPES.items() if kind == "REAL"}
"""Columns of which JSON of SQLite drops the last digits, as they are asked for to have all of them, as texts."""

_FIELDS = ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
# An id is never given again. `place` is where the embedding is in the file of embeddings. Until a job ends, `removed`
# keeps what it has replaced, which may be what another file holds.
SCHEMA = f"""
CREATE TABLE state (about TEXT NOT NULL, vectors TEXT NOT NULL, num_vectors INTEGER NOT NULL, changes INTEGER NOT NULL);
CREATE TABLE pictures (id INTEGER PRIMARY KEY AUTOINCREMENT, place INTEGER, {_FIELDS});
CREATE TABLE removed (id INTEGER PRIMARY KEY, place INTEGER, {_FIELDS});
CREATE TABLE finished (path TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);
CREATE TABLE inputs (path TEXT PRIMARY KEY)
"""
SUMS = """
CREATE TABLE IF NOT EXISTS sums (vectors TEXT, first INTEGER, count INTEGER NOT NULL, crc32 INTEGER NOT NULL,
PRIMARY KEY (vectors, first))
"""
"""Of the embeddings in a file, block by block; indexes of before have none until they are written to."""
_NAMES, _MARKS = ", ".join(("place", *COLUMNS)), ", ".join("?" * (len(COLUMNS) + 1))
INSERT = f"INSERT INTO pictures ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608 - no text but these names


def _moment(text: str | None) -> str | None:
    """Return a moment as the index keeps it; None of one that there is not."""
    try:
        return None if text is None else datetime.fromisoformat(text).isoformat(timespec="seconds")
    except ValueError:
        return None


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """A picture in an index, or a file that is none.

    Args:
        id: that the index knows it by, for good; None of a new one.
        path: of the file that it is in, in full.
        part: key of its sample, where the file holds several.
        size: of the picture as it is encoded, in bytes; of a video's frame, of the video.
        mtime_ns: when the file was last changed, in nanoseconds since 1970.
        sha256: of the picture as it is encoded, or of the video; empty where it could not be read.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        camera: see `CameraNotes`.
        taken: see `CameraNotes`; of a date that is none, as cameras without a clock write, nothing is kept.
        latitude: see `CameraNotes`.
        longitude: see `CameraNotes`.
        time: of a video's frame, in seconds since the first one.
        problem: why there is no embedding; None where there is one.
        embedding: `(dim,)`, of unit length; None where there is a problem.
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

    def embedded(self) -> Embedded:
        """Return it as the tables have it."""
        return self.embedding, tuple(getattr(self, name) for name in COLUMNS)

    @classmethod
    def of(cls, embedded: Embedded) -> Row:
        """Return a row of the tables."""
        embedding, values = embedded
        return cls(embedding=embedding, **dict(zip(COLUMNS, values, strict=True)))


def array_of(name: str, values: Sequence[Any]) -> NDArray[Any]:
    """Return what a column has: moments, numbers, or texts; NaT, NaN or None where it has nothing."""
    if name == "taken":
        return np.array(values, "datetime64[s]")
    return np.array(values, object if _TYPES[name].startswith("TEXT") else np.float64)


def columns_of(db: sqlite3.Connection, *names: str) -> list[list[Any]]:
    """Return what columns have of each picture, in the order of the ids.

    As JSON, many at once: to have SQLite yield a row for each picture takes longer than to read it.
    """
    blocks = list(_column_blocks(db, *names))
    return [list(chain.from_iterable(block[one] for block in blocks)) for one in range(len(names))]


def numbers_of(db: sqlite3.Connection, *names: str) -> list[NDArray[np.int64]]:
    """Return what columns of numbers have of each picture, without an object for each."""
    blocks = [[np.array(one, np.int64) for one in block] for block in _column_blocks(db, *names)]
    return [np.concatenate([np.empty(0, np.int64), *(block[one] for block in blocks)]) for one in range(len(names))]


def _column_blocks(db: sqlite3.Connection, *names: str) -> Iterator[list[list[Any]]]:
    """Yield what columns have of some thousand pictures after others."""
    ((end,),) = db.execute("SELECT ifnull(max(id), -1) + 1 FROM pictures")
    wanted = ", ".join(f"json_group_array({EXACT.get(name, name)})" for name in names)
    # No text but names of ours.
    pictures = "SELECT * FROM pictures WHERE id BETWEEN ? AND ? AND place IS NOT NULL ORDER BY id"
    text = f"SELECT {wanted} FROM ({pictures})"  # noqa: S608
    for start in range(0, end, _BLOCK):
        yield [json.loads(one) for one in db.execute(text, (start, start + _BLOCK - 1)).fetchone()]


def selected(
    db: sqlite3.Connection, columns: Sequence[str], ids: Sequence[int] | None, table: str = "pictures"
) -> list[tuple[Any, ...]]:
    """Return what some columns have of some rows of a table, or of all, in the order of the ids."""
    chosen = None if ids is None else json.dumps([int(number) for number in ids])
    where = "" if chosen is None else "WHERE id IN (SELECT value FROM json_each(?))"
    text = f"SELECT {', '.join(columns)} FROM {table} {where} ORDER BY id"  # noqa: S608 - names of ours, values bound
    return db.execute(text, () if chosen is None else (chosen,)).fetchall()
