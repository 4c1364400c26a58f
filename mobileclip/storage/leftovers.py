"""Names of temporary files, and their removal after the process that wrote them was killed.

A name says which process made it. What ends with `.tmp` is of no use without its process, and is swept. What ends with
`.before` is an original that was being replaced: it is put back, and never swept while nothing has replaced it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from mobileclip.storage.exclusive import LOCK

# A temporary file that nobody has touched for so long is left over, whatever machine it came from.
LEFT_OVER_SECONDS = 24 * 3600.0

PREFIX = ".mobileclip-"
"""How the name of whatever is not whole, or only for the time of a command, begins."""

_TEMPORARY, _ORIGINAL = ".tmp", ".before"
_swept: set[tuple[int, Path]] = set()


def is_left_over(name: str) -> bool:
    """Return whether a file or folder of this name is one of our marks, and no person's."""
    return name == LOCK or name.startswith(PREFIX)


def temporary_beside(path: Path) -> Path:
    """Return a name of this process's own in the folder of a path, which is swept at the first use."""
    sweep(path.parent)
    return path.parent / f"{_name()}{_TEMPORARY}"


def original_beside(path: Path, replacement: Path) -> Path:
    """Return where an original is put while its replacement takes its place: in a new folder, under its own name.

    Args:
        path: of the original.
        replacement: what is going to be there, a folder of the same disk.
    """
    holder = path.parent / f"{_name()}-{replacement.stat().st_ino}{_ORIGINAL}"
    holder.mkdir()
    return holder / path.name


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of processes that died, and put originals back; once a process and folder."""
    if (os.getpid(), folder) in _swept:
        return
    _swept.add((os.getpid(), folder))
    now = time.time()
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not (entry.name.startswith(PREFIX) and entry.name.endswith((_TEMPORARY, _ORIGINAL))):
                continue
            with suppress(OSError):
                if _is_of_the_dead(entry.name) or now - entry.stat().st_mtime > LEFT_OVER_SECONDS:
                    (_put_back if entry.name.endswith(_ORIGINAL) else remove_tree)(Path(entry.path))


def _put_back(holder: Path) -> None:
    """Put an original back in its place; it goes where its replacement, known by its inode, has got there."""
    inode = holder.name.removesuffix(_ORIGINAL).rpartition("-")[2]
    for original in list(holder.iterdir()):
        place = holder.parent / original.name
        if not os.path.lexists(place):
            original.rename(place)
        elif str(place.lstat().st_ino) == inode:
            remove_tree(original)
    # Not empty where something else has taken the place: then the original stays.
    holder.rmdir()


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _name() -> str:
    return f"{PREFIX}{_place()}-{os.getpid()}-{secrets.token_hex(6)}"


def _is_of_the_dead(name: str) -> bool:
    """Return whether the name is of a process of this machine that has ended."""
    place, _, rest = name.removeprefix(PREFIX).partition("-")
    process = rest.partition("-")[0]
    if place != _place() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@cache
def _place() -> str:
    """Return a short text for where a process number means one process: this machine since it started, or a container.

    Machines that share a folder may give two processes one number.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
