"""The embeddings of an index: one file of float16 that grows, of which SQLite knows how much counts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileclip.storage.atomic import unwritable

_NAME = re.compile(r"embeddings-([0-9]{8})\.float16")

FIRST = "embeddings-00000000.float16"


def is_vectors_name(name: str) -> bool:
    """Return whether a file is called like one of embeddings."""
    return _NAME.fullmatch(name) is not None


def next_name(name: str) -> str:
    """Return the name of the file that takes the place of another."""
    return f"embeddings-{int(name[11:19]) + 1:08d}.float16"


def append(path: Path, vectors: Iterable[NDArray[np.float16]], *, behind: int) -> None:
    """Add embeddings, which are on the disk when this returns; what a killed job has left behind the others goes.

    Args:
        path: of the file; made where nothing is in it yet.
        vectors: one or several arrays of them.
        behind: bytes that count.

    Raises:
        OSError: if they cannot be written.
    """
    try:
        with path.open("r+b" if behind else "wb") as file:
            file.truncate(behind)
            file.seek(behind)
            for some in vectors:
                file.write(np.ascontiguousarray(some).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(error, path) from error


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
