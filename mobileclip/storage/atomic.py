"""Local files and folders that appear whole or not at all, whatever ends the process or the machine in between."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

# A temporary file that nobody has touched for so long is left over, whatever machine it came from.
LEFT_OVER_SECONDS = 24 * 3600.0

_FILE_MODE = 0o666
_PREFIX, _SUFFIX = ".mobileclip-", ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_swept: set[tuple[int, Path]] = set()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside a file, and put what was written there in the file's place when the block ends.

    File and folder are on the disk when it returns; an error leaves nothing behind. What processes that died have left
    in the folder is removed at the first file that this one writes there.

    Args:
        path: replaced where it exists; its directory must exist.

    Raises:
        OSError: if the file cannot be written.
    """
    temporary = _beside(path)
    try:
        try:
            # Made here, so that a folder that cannot be written to is told from what goes wrong later.
            with temporary.open("xb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        except OSError as error:
            raise _named(error, path) from error
        try:
            yield temporary
            # safetensors puts a file of its own under this name, which its owner alone could read.
            temporary.chmod(mode)
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
            move_into_place(temporary, path)
        except OSError as error:
            if error.errno in _FULL and error.filename in (None, str(temporary)):
                raise _named(error, path) from error
            raise
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside a path, and put it there with all that was written to it when the block ends.

    Its files are on the disk when it returns; an error leaves nothing behind, and what processes that died have left
    is removed as by `atomic_path`. Where another process was quicker, its folder stays.

    Args:
        path: of the folder. Its parents are made.
        overwrite: whether a folder that is there is replaced, once the new one is whole; nothing may be there without.

    Raises:
        FileExistsError: if there is something that may not be replaced.
        OSError: if it cannot be written.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.mkdir()
    except OSError as error:
        raise _named(error, path) from error
    try:
        yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode) & _FILE_MODE
        for folder, _, names in os.walk(temporary):
            for name in names:
                Path(folder, name).chmod(mode)
                with Path(folder, name).open("r+b") as stream:
                    os.fsync(stream.fileno())
            _synchronise(Path(folder))
        if path.exists() and overwrite:
            before = _beside(path)
            path.rename(before)
            temporary.rename(path)
            if before.is_symlink():
                before.unlink()
            else:
                shutil.rmtree(before)
        else:
            _move_folder(temporary, path)
        _synchronise(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Return whether a file or a folder of this name is one that is being written, or was when its process ended."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def _move_folder(source: Path, target: Path) -> None:
    """Rename a folder, or leave what another process has put there meanwhile."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file of the same disk, and put its new name on the disk."""
    source.replace(target)
    _synchronise(target.parent)


def _beside(path: Path) -> Path:
    """Return a name of this process's own in the folder of a path, which the first use rids of what the dead left."""
    folder = path.parent
    if (os.getpid(), folder) not in _swept:
        _swept.add((os.getpid(), folder))
        _sweep(folder)
    return folder / f"{_PREFIX}{_place()}-{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}"


def _named(error: OSError, path: Path) -> OSError:
    what = f"{path} cannot be written: {error.strerror or error}"
    hint = "; make room and run this again" if error.errno in _FULL else ""
    return OSError(error.errno, f"{what}{hint}")


def _synchronise(folder: Path) -> None:
    """Put the folder's entries on the disk: without, a file's new name may be lost with the power."""
    if os.name == "nt":  # knows no such thing
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Network and FUSE folders that cannot do this do it by themselves, or not at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove temporary files and folders of processes that died."""
    now = time.time()
    with suppress(OSError):
        for entry in os.scandir(folder):
            if is_temporary(entry.name):
                with suppress(OSError):
                    if _is_of_the_dead(entry.name) or now - entry.stat().st_mtime > LEFT_OVER_SECONDS:
                        remove = shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink
                        remove(entry.path)


def _is_of_the_dead(name: str) -> bool:
    """Return whether the name is of a process of this machine that has ended."""
    place, _, rest = name.removeprefix(_PREFIX).partition("-")
    process = rest.partition("-")[0]
    if os.name == "nt" or place != _place() or not process.isdecimal():  # on Windows, asking would end the process
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
