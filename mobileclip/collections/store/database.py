"""The SQLite file of an index, and what is said where it cannot be opened."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobileclip.storage.atomic import unwritable

INDEX = "index.sqlite"
_WAIT = 60.0


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that sees one moment of a file; whoever wants to write begins a transaction.

    A rollback journal, SQLite's default, works on disks of the network, too, and for whoever may only read.
    """
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise _named(error, path) from error


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that sees one moment of an index."""
    with opened(folder / INDEX) as db:
        db.execute("BEGIN")
        yield db


@contextmanager
def changing(folder: Path, *, count: bool = True) -> Iterator[sqlite3.Connection]:
    """Yield a connection whose writes are all there when the block ends, or none is."""
    with opened(folder / INDEX) as db:
        db.execute("BEGIN IMMEDIATE")
        before = db.total_changes
        yield db
        if count and db.total_changes != before:
            db.execute("UPDATE state SET changes = changes + 1")
        db.execute("COMMIT")


def _named(error: sqlite3.Error, path: Path) -> Exception:
    said = str(error)
    if "is full" in said:
        return unwritable(OSError(errno.ENOSPC, said), path)
    if "locked" in said:
        return OSError(f"{path} has been in use by another program for {_WAIT:g} s; run this again when that is done")
    if isinstance(error, sqlite3.OperationalError) and not said.startswith("no such"):
        return OSError(f"{path} cannot be opened: {said}; look at its disk, and who may write to its folder")
    return ValueError(f"{path} is damaged ({said}); delete the folder, and index the pictures again")
