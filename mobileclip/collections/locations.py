"""Determines locations of indexes, and finds an index by name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mobileclip import storage
from mobileclip.collections.metadata import ModelSource
from mobileclip.collections.store import INDEX, Store, is_index
from mobileclip.machine import raise_machine_fault

_MOST_LETTERS = 40
# An indexed folder counts as moved if at least this share of its files exists in another folder.
_MOVED = 0.5


def indexes_folder() -> Path:
    """Return the default folder for indexes, below `XDG_CACHE_HOME` (`~/.cache` by default).

    Raises:
        ValueError: if `XDG_CACHE_HOME` is not set, and this user has no home folder, as in containers with a numeric
            user id.
    """
    cache = storage.cache_folder()
    if cache is None:
        raise ValueError(
            "this user has no home folder for the index; specify a folder with --index FOLDER, or set HOME"
        )
    return cache / "indexes"


def default_index(inputs: Sequence[str]) -> Path:
    """Return the default location of the index for some inputs.

    Args:
        inputs: inputs of the index, as given by the user. The same inputs, in any order, have the same index.
    """
    places = sorted({storage.absolute_path(one) for one in inputs})
    digest = hashlib.sha256("\0".join(places).encode(errors="surrogateescape")).hexdigest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(places[0]).name).strip("-")[:_MOST_LETTERS]
    return indexes_folder() / f"{name or 'images'}-{digest[:12]}"


def find_index(name: str | Path | None = None) -> Path:
    """Find an index by name, and return its folder.

    Args:
        name: the folder of an index, or an input of an index in the cache; None for the newest index in the cache.

    Raises:
        FileNotFoundError: if the index does not exist.
    """
    if name is not None and is_index(Path(name)):
        return Path(name)
    if name is not None and storage.cache_folder() is None:
        raise FileNotFoundError(f"there is no index {storage.printable(name)}; create it: `mobileclip index FOLDER`")
    found = _by_age()
    if name is None:
        if not found:
            raise FileNotFoundError(
                f"there is no index in {indexes_folder()}; pass --index, or create an index: `mobileclip index FOLDER`"
            )
        return found[-1]
    own = default_index([str(name)])
    if is_index(own):
        return own
    folder = storage.absolute_path(str(name))
    for store in _readable(reversed(found)):
        if folder in store.inputs:
            return store.folder
    shown = storage.printable(name)
    if not Path(name).exists():
        raise FileNotFoundError(f"{shown} does not exist; give the folder of an index, or an indexed image folder")
    raise FileNotFoundError(
        f"{shown} is not an index, and {indexes_folder()} has no index of this folder; create an index: "
        f"`mobileclip index {shown}`"
    )


def moved_index(files: Iterable[tuple[str, int]], model: ModelSource | None) -> Store | None:
    """Find the cached index of a folder that has moved; return None if there is no such index.

    An index matches if all its inputs are missing, and at least half of its files exist in the new folder with equal
    names and sizes. Of several matching indexes, the function returns the index with the most files in the new folder.

    Args:
        files: paths of the files in the new folder, with sizes in bytes.
        model: model of the index; None for any model.
    """
    here = {(os.path.basename(path), size) for path, size in files}  # noqa: PTH119 - texts, of any number
    best, most = None, 0
    for store in _readable(_by_age()):
        known = _files_of(store) if _is_left(store) and model in (None, store.about.model) else set()
        count = len(known & here)
        if count >= max(_MOVED * len(known), most, 1):
            best, most = store, count
    return best


def _by_age() -> list[Path]:
    """Return the indexes in the cache, the most recently written index last."""
    folder = indexes_folder()
    found = [path for path in folder.iterdir() if is_index(path)] if folder.is_dir() else []
    found = [path for path in found if not storage.is_left_over(path.name)]
    return sorted(found, key=lambda path: (path / INDEX).stat().st_mtime_ns)


def _readable(folders: Iterable[Path]) -> Iterator[Store]:
    """Open and yield the index at each folder; skip damaged indexes, and indexes of another version."""
    for folder in folders:
        try:
            yield Store.open(folder)
        except (OSError, ValueError) as error:  # noqa: PERF203 - few iterations
            raise_machine_fault(error)


def _is_left(store: Store) -> bool:
    return bool(store.inputs) and not any(Path(one).exists() for one in store.inputs)


def _files_of(store: Store) -> set[tuple[str, int]]:
    """Return the names and sizes of the indexed files."""
    files = [(path, size) for path, part, size in store.values("path", "part", "size") if part is None]
    files += [(one.path, one.num_bytes) for one in store.finished]
    return {(os.path.basename(path), size) for path, size in files}  # noqa: PTH119 - texts, of any number
