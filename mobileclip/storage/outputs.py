"""Checks a command's output path before the work: its suffix, its folder, and whether a file is there already."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from mobileclip.storage.addresses import AnyPath, is_remote, local_path
from mobileclip.storage.atomic import is_stream
from mobileclip.storage.leftovers import is_left_over, sweep

_FLATTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


def require_output(path: AnyPath, *, overwrite: bool, suffixes: Collection[str] = ()) -> None:
    """Make sure that a file can be written, and that nothing is lost by it.

    Args:
        path: of the file; a pipe or a device, such as `/dev/stdout`, is written to as it is, whatever its name.
        overwrite: whether a file that is there may be replaced.
        suffixes: how its name may end, such as `.npz`; empty where any name will do.

    Raises:
        ValueError: if its name ends otherwise; the message has the endings.
        FileExistsError: if it is there and may not be replaced.
        OSError: if it is a folder, or its folder cannot be made or written to.
    """
    place = _local(path)
    if is_stream(place):
        return
    if suffixes and place.suffix.lower() not in suffixes:
        raise ValueError(f"{path} cannot be written: its name must end with {' or '.join(suffixes)}")
    if _is_there(place):
        if place.is_dir():
            raise IsADirectoryError(
                f"{path} is a folder; give the name of a file, such as {place / _example(suffixes)}"
            )
        if not overwrite:
            raise FileExistsError(f"{path} is there already; choose another name, or replace it with `--overwrite`")
    _require_writable(Path(os.path.realpath(place)).parent)


def require_output_folder(path: AnyPath, *, overwrite: bool, marker: str = "") -> None:
    """Make sure that a folder can be written, and that nothing is lost by it.

    Args:
        path: of the folder, which need not exist.
        overwrite: whether a folder of the same kind may be replaced.
        marker: the file that a folder of this kind holds; another one that is not empty is never replaced. What a
            killed process left behind, and a lock, count for nothing.

    Raises:
        FileExistsError: if it holds something and may not be replaced.
        OSError: if it is a file, or cannot be made or written to.
    """
    place = _local(path)
    sweep(place.parent)
    if not _is_there(place):
        _require_writable(place.parent)
        return
    if not place.is_dir():
        raise NotADirectoryError(f"{path} is a file; give the name of a folder")
    if holds_anything(place):
        if not overwrite:
            raise FileExistsError(f"{path} is there already; choose another folder, or replace it with `--overwrite`")
        if not (place / marker).is_file():
            raise FileExistsError(
                f"{path} holds other files and no {marker}, and is not replaced; choose another folder"
            )
    _require_writable(place)


def holds_anything(folder: Path) -> bool:
    """Return whether there is anything in a folder but what a job leaves that was stopped before it wrote anything."""
    return any(not is_left_over(entry.name) for entry in folder.iterdir())


def _local(path: AnyPath) -> Path:
    # Of the two slashes of a URL, pathlib leaves one.
    if is_remote(path) or (isinstance(path, Path) and _FLATTENED.match(str(path))):
        raise ValueError(f"{os.fspath(path)} is a URL; this is written to a disk of this machine")
    return local_path(path)


def _is_there(place: Path) -> bool:
    """Return whether there is a file, a folder or a link, be it to nowhere; a name that none can have is refused."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    nearest = next((one for one in (folder, *folder.parents) if _is_there(one)), None)
    if nearest is None:
        return
    if not nearest.is_dir():
        raise NotADirectoryError(f"nothing can be written to {folder}: {nearest} is no folder")
    try:
        # A file without a name: what may be written is not always what permissions say.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OSError(f"nothing can be written to {nearest} ({error.strerror}); choose another folder") from None


def _example(suffixes: Collection[str]) -> str:
    return f"result{next(iter(suffixes), '.txt')}"
