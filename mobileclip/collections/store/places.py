"""Where an index is kept when nobody says: in the user's cache, by the name of what is in it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mobileclip import storage
from mobileclip.collections.store.manifest import MANIFEST
from mobileclip.collections.store.store import is_index

_MOST_LETTERS = 40


def indexes_folder() -> Path:
    """Return the folder of all indexes that nobody named: below `XDG_CACHE_HOME`, by default `~/.cache`.

    Raises:
        ValueError: if this user has no home either, as in containers that run as a number.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:
        raise ValueError(
            "this user has no home folder to keep the index in; name a folder for it with --index FOLDER, or set HOME"
        ) from None
    return cache / "mobileclip" / "indexes"


def default_index(inputs: Sequence[str]) -> Path:
    """Return where the index of these pictures is kept.

    Args:
        inputs: as a person gives them; the same ones, in any order, have the same index.
    """
    places = sorted({os.path.abspath(storage.local_path(one)) for one in inputs})  # noqa: PTH100 - links stay links
    digest = hashlib.sha256("\0".join(places).encode(errors="surrogateescape")).hexdigest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(places[0]).name).strip("-")[:_MOST_LETTERS]
    return indexes_folder() / f"{name or 'pictures'}-{digest[:12]}"


def newest_index() -> Path:
    """Return the index of the cache that was written to last.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = indexes_folder()
    found = [path for path in folder.iterdir() if is_index(path)] if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"there is no index in {folder}; make one with mobileclip index PHOTOS, or name it with --index"
        )
    return max(found, key=lambda path: (path / MANIFEST).stat().st_mtime_ns)
