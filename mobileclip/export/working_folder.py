"""Where an export is written before it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mobileclip.storage import exclusive
from mobileclip.storage.exclusive import LOCK


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside an output, of this process alone; nothing of it is left behind.

    What a process that was killed has left there is removed first: the system has let go of its lock.

    Args:
        out: what is going to be written.

    Raises:
        ValueError: if another process is writing the same output.
        OSError: if nothing can be written there.
    """
    place = out.with_name(f".{out.name}.exporting")
    if place.is_symlink() or (place.exists() and not (place / LOCK).is_file()):
        raise FileExistsError(f"{place} is no folder of an export that was killed; remove it, or choose another output")
    held = False
    try:
        with exclusive(place):
            held = True
            _empty(place)
            folder = place / "export"
            folder.mkdir()
            try:
                yield folder
            finally:
                _empty(place)
    finally:
        if held:
            # If another process has come in meanwhile, the folder is its own.
            with suppress(OSError):
                (place / LOCK).unlink()
                place.rmdir()


def _empty(place: Path) -> None:
    """Remove everything but the lock, which is held."""
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
