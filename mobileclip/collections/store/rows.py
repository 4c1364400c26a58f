"""Rows of an index: what is known of a picture, and the tables that keep it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

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

# An id is never given again. Until a job ends, what it has replaced is only marked: another file may hold the same.
SCHEMA = f"""
CREATE TABLE state (about TEXT NOT NULL, changes INTEGER NOT NULL);
CREATE TABLE pictures (id INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(f"{one} {_TYPES[one]}" for one in _TYPES)});
CREATE INDEX problems ON pictures(id) WHERE problem IS NOT NULL;
CREATE TABLE embeddings (id INTEGER PRIMARY KEY, embedding BLOB NOT NULL);
CREATE TABLE removed (id INTEGER PRIMARY KEY);
CREATE VIEW present AS SELECT * FROM pictures WHERE id NOT IN (SELECT id FROM removed);
CREATE TABLE finished (path TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);
CREATE TABLE inputs (path TEXT PRIMARY KEY);
CREATE TABLE concepts (name TEXT PRIMARY KEY, known TEXT NOT NULL, embeddings BLOB NOT NULL);
CREATE TABLE words (known TEXT NOT NULL, embeddings BLOB NOT NULL, levels BLOB NOT NULL);
CREATE TABLE upgrade (about TEXT NOT NULL);
CREATE TABLE upgraded (id INTEGER PRIMARY KEY, embedding BLOB NOT NULL)
"""


def _moment(text: str | None) -> str | None:
    """Return a moment as the index keeps it; None of one that there is not."""
    try:
        return None if text is None else datetime.fromisoformat(text).isoformat(timespec="seconds")
    except ValueError:
        return None


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """A picture in an index, or a file that is none. (Arguments as before.)"""

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


def array_of(name: str, values: Sequence[Any]) -> NDArray[Any]:
    """Return what a column has: moments, numbers, or texts; NaT, NaN or None where it has nothing."""
    if name == "taken":
        return np.array(values, "datetime64[s]")
    return np.array(values, object if _TYPES[name].startswith("TEXT") else np.float64)
