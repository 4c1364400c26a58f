"""Opens the SQLite file of an index, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mobileclip.storage.atomic import unwritable

INDEX = "index.sqlite"
"""The file of an index that holds its rows."""

# Of file systems that other machines write to as well: SQLite's log beside the file (WAL) is for one machine alone.
_NETWORK = ("9p", "afs", "ceph", "cifs", "fuse.", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "smb", "virtiofs")
# Seconds that a reader waits on such a disk for a writer, or the other way round.
_WAIT = 60.0


@contextmanager
def opened(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield a connection for the block, in one transaction unless it writes: what it reads is of one moment.

    Each piece of work has a connection of its own, so that threads and processes share none.

    Args:
        path: of the file, which is there.
        write: whether it is written to; the writer holds the folder.

    Raises:
        ValueError: if the file is damaged.
        OSError: if it cannot be read or written.
    """
    with told(path):
        db = sqlite3.connect(_address(path), uri=True, timeout=_WAIT, isolation_level=None)
        try:
            # A file that somebody else made runs nothing.
            db.execute("PRAGMA trusted_schema = OFF")
            if write:
                _prepare(db, path)
            else:
                db.execute("BEGIN")
            yield db
        finally:
            db.close()


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into errors that name the file and say what to do.

    Raises:
        ValueError, OSError: see `opened`.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _named(error, path) from error


@contextmanager
def having(folder: Path, table: str) -> Iterator[sqlite3.Connection | None]:
    """Yield a connection that reads; None where an index has no such table, as one in another form.

    Args:
        folder: of the index.
        table: one of those that not every index has.

    Raises:
        ValueError, OSError: see `opened`.
    """
    if not (folder / INDEX).is_file():
        yield None
        return
    with opened(folder / INDEX) as db:
        yield db if has_table(db, table) else None


@contextmanager
def changing(folder: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection whose writes are all there when the block ends, or none is; any process may.

    Args:
        folder: of the index.

    Raises:
        ValueError, OSError: see `opened`.
    """
    with opened(folder / INDEX, write=True) as db:
        db.execute("BEGIN IMMEDIATE")
        # Whatever ends the block before, the connection is closed, and nothing was written.
        yield db
        db.execute("COMMIT")


def has_table(db: sqlite3.Connection, table: str) -> bool:
    """Return whether there is a table of this name."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None


def is_on_network(folder: Path, mounts: str | None = None) -> bool:
    """Return whether a folder is on a disk of another machine, as far as Linux tells.

    Args:
        folder: that is there.
        mounts: what is mounted, as `/proc/self/mounts` says it, which is read by default.
    """
    if mounts is None:
        mounts = ""
        with suppress(OSError):
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    place, longest, kind = folder.resolve(), -1, ""
    for line in mounts.splitlines():
        point, found = line.split()[1:3]
        mount = Path(point.replace("\\040", " "))
        if place.is_relative_to(mount) and len(mount.parts) >= longest:
            longest, kind = len(mount.parts), found
    return kind.startswith(_NETWORK)


def _address(path: Path) -> str:
    """Return the file as SQLite opens it; in a folder that is read-only, it makes no files beside it."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return f"{path.absolute().as_uri()}?mode=rw"
    is_whole = not path.with_name(f"{path.name}-wal").exists()
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_whole else ''}"


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Have readers wait for no writer where the disk allows it, and what is committed outlive the machine."""
    wanted = "delete" if is_on_network(path.parent) else "wal"
    if db.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        db.execute(f"PRAGMA journal_mode = {wanted}")
    db.execute("PRAGMA synchronous = FULL")


def _named(error: sqlite3.Error, path: Path) -> Exception:
    said = str(error)
    if "is full" in said:
        return unwritable(OSError(errno.ENOSPC, said), path)
    if "locked" in said:
        return OSError(f"{path} has been in use by another program for {_WAIT:g} s; run this again when that is done")
    if isinstance(error, sqlite3.OperationalError) and not said.startswith("no such"):
        return OSError(f"{path} cannot be opened: {said}; see if its disk is full, and who may write to its folder")
    return ValueError(f"{path} is damaged ({said}); delete the folder, and index the pictures again")
