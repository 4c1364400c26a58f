"""The embeddings of an index: one file of float16 that grows, of which SQLite knows how much counts."""

from __future__ import annotations

import os
import re
import sqlite3
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.store.rows import INSERT, Embedded, Row
from mobileclip.storage.atomic import unwritable

Sum = tuple[int, int, int]
"""Of a block of embeddings: the place of the first one, how many there are, and the CRC-32 of their bytes."""

_NAME = re.compile(r"embeddings-([0-9]{8})\.float16")

# Embeddings that have one sum; rows that are written at once.
_BLOCK = 4096

FIRST = "embeddings-00000000.float16"


def is_vectors_name(name: str) -> bool:
    """Return whether a file is called like one of embeddings."""
    return _NAME.fullmatch(name) is not None


def next_name(name: str) -> str:
    """Return the name of the file that takes the place of another."""
    return f"embeddings-{int(name[11:19]) + 1:08d}.float16"


def append(path: Path, vectors: Iterable[NDArray[Any]], *, behind: int) -> list[Sum]:
    """Add embeddings, or codes of these, which are on the disk when this returns, and return their sums.

    What a killed job has left behind the others goes.

    Args:
        path: of the file; made where nothing is in it yet.
        vectors: one or several arrays of them.
        behind: bytes that count.

    Raises:
        OSError: if they cannot be written.
    """
    sums: list[Sum] = []

    def counted() -> Iterator[NDArray[Any]]:
        for some in vectors:
            first = behind // (some.itemsize * some.shape[1]) + sum(count for _, count, _ in sums)
            sums.extend(sums_of(some, first))
            yield some

    write(path, counted(), behind=behind)
    return sums


def write(path: Path, arrays: Iterable[NDArray[Any]], *, behind: int = 0) -> None:
    """Write arrays behind the bytes that count; they are on the disk when this returns.

    Args:
        path: of the file; made where nothing counts yet.
        arrays: of any shapes.
        behind: bytes that count.

    Raises:
        OSError: if they cannot be written.
    """
    try:
        with path.open("r+b" if behind else "wb") as file:
            file.truncate(behind)
            file.seek(behind)
            for some in arrays:
                file.write(np.ascontiguousarray(some).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(error, path) from error


def sums_of(vectors: NDArray[Any], first: int) -> list[Sum]:
    """Return the sums of embeddings, of which the first is at a place of its file."""
    blocks = ((start, vectors[start : start + _BLOCK]) for start in range(0, len(vectors), _BLOCK))
    return [(first + start, len(block), zlib.crc32(np.ascontiguousarray(block).data)) for start, block in blocks]


def check(path: Path, vectors: NDArray[Any], sums: Iterable[Sum]) -> None:
    """Compare embeddings with the sums of what was written.

    Args:
        path: of their file.
        vectors: of the whole file.
        sums: of some blocks, or of all.

    Raises:
        ValueError: if some are others.
    """
    for first, count, crc32 in sums:
        if zlib.crc32(vectors[first : first + count].data) != crc32:
            raise ValueError(
                f"{path} is damaged: of the embeddings {first:,} to {first + count - 1:,}, some are not what was "
                "written; delete the folder, and index the pictures again"
            )


def write_anew(db: sqlite3.Connection, folder: Path, ids: Sequence[int], blocks: Iterable[NDArray[np.float16]]) -> None:
    """Have the embeddings of all pictures in a new file, which is on the disk before the transaction ends.

    Args:
        db: in a transaction of the process that holds the index.
        folder: of the index.
        ids: of all pictures, rising.
        blocks: their embeddings, in this order.

    Raises:
        OSError: if it cannot be written.
    """
    ((name,),) = db.execute("SELECT vectors FROM state")
    kept = next_name(name)
    sums = append(folder / kept, blocks, behind=0)
    db.execute("DELETE FROM sums")
    db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", ((kept, *one) for one in sums))
    db.executemany("UPDATE pictures SET place = ? WHERE id = ?", enumerate(ids))
    db.execute("UPDATE state SET vectors = ?, num_vectors = ?", (kept, len(ids)))


def blocks_of(rows: Iterable[Row]) -> Iterator[list[Embedded]]:
    """Yield rows, many at once."""
    rows = iter(rows)
    while block := [row.embedded() for row in islice(rows, _BLOCK)]:
        yield block


def insert(db: sqlite3.Connection, blocks: Iterable[list[Embedded]], folder: Path, dim: int) -> None:
    """Add rows: their embeddings are on the disk before the transaction ends."""
    for block in blocks:
        name, count = db.execute("SELECT vectors, num_vectors FROM state").fetchone()
        vectors = [embedding for embedding, _ in block if embedding is not None]
        if vectors:
            stacked = np.stack(vectors).astype(np.float16, copy=False).reshape(-1, dim)
            sums = append(folder / name, [stacked], behind=2 * count * dim)
            db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", ((name, *one) for one in sums))
        places = iter(range(count, count + len(vectors)))
        db.executemany(INSERT, ((None if one is None else next(places), *values) for one, values in block))
        db.execute("UPDATE state SET num_vectors = ?", (count + len(vectors),))


def sums_in(db: sqlite3.Connection, name: str) -> list[Sum]:
    """Return the sums of the blocks of a file of embeddings, as far as they were noted."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sums'").fetchone() is None:
        return []
    return db.execute("SELECT first, count, crc32 FROM sums WHERE vectors = ? ORDER BY first", (name,)).fetchall()


def mapped(path: Path, count: int, dim: int) -> NDArray[np.float16]:
    """Return the embeddings of a file, of which only those that are looked at are read.

    Shape:
        `(count, dim)`, float16.

    Args:
        path: of the file.
        count: how many there are.
        dim: numbers of each.

    Raises:
        FileNotFoundError: if the file is gone: another has taken its place.
        ValueError: if it is shorter.
    """
    if not count:
        return np.empty((0, dim), np.float16)
    size = path.stat().st_size
    if size < 2 * count * dim:
        raise ValueError(
            f"{path} is damaged: it has {size} bytes, expected {2 * count * dim}; delete the folder, and index the "
            "pictures again"
        )
    return np.asarray(np.memmap(path, np.float16, mode="c", shape=(count, dim)))


class Chosen:
    """Some embeddings of a file, of which those alone are read that are asked for; none stays in memory.

    Args:
        path: of the file.
        places: of those that count.
        dim: numbers of each.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, places: NDArray[np.int64], dim: int) -> None:
        self._file, self._places = path.open("rb"), places
        self.shape = (len(places), dim)
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    def __getitem__(self, key: Any) -> NDArray[np.float16]:
        """Return a copy of one, or of several.

        Raises:
            OSError: if the file cannot be read.
        """
        places, size = self._places[key], 2 * self.shape[1]
        flat, file = np.ravel(places), self._file.fileno()
        # Of those that follow one another, many are read at once.
        starts = np.flatnonzero(np.diff(flat, prepend=-1) != 1)
        starts = np.union1d(starts, np.arange(0, len(flat), _BLOCK))
        runs = zip((size * flat[starts]).tolist(), (size * np.diff(starts, append=len(flat))).tolist(), strict=True)
        read = bytearray().join([os.pread(file, length, first) for first, length in runs])
        if len(read) != 2 * self.shape[1] * np.size(places):
            raise OSError(f"{self._file.name} has become shorter; search again, or index the pictures again")
        return np.frombuffer(read, np.float16).reshape(*np.shape(places), self.shape[1])


Vectors = NDArray[np.float16] | Chosen
"""Embeddings by their places in a snapshot."""
