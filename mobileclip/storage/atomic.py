"""Local files and folders that appear whole or not at all, one writer at a time, and checks of what may be written."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

import filelock

from mobileclip.storage.addresses import AnyPath, is_remote, local_path

LOCK = ".lock"


@contextmanager
def exclusive(directory: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder while a job writes to it; the system lets go of it when the process ends, however that happens.

    The lock's file stays where it is: removing it would let a third in beside one that waits for it.

    Args:
        directory: created where it is missing.
        wait_seconds: how long another holder is waited for; by default not at all.

    Raises:
        ValueError: if another process holds it, or it is held here already.
        OSError: if nothing can be written there.
    """
    lock = filelock.FileLock(directory / LOCK, timeout=wait_seconds)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        waited = f" for {wait_seconds:g} s" if wait_seconds else ""
        raise ValueError(
            f"another job is working in {directory}{waited}; wait for it, or choose another output (processes that a "
            "killed launcher started may live on: end them)"
        ) from None
    except NotImplementedError as error:
        raise OSError(f"{directory} lies on a disk that knows no locks ({error}); choose another output") from error
    except OSError as error:
        raise OSError(
            error.errno, f"{directory} cannot be written to ({error.strerror or error}); choose another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


# A temporary file that nobody has touched for so long is left over, whatever machine it came from.
LEFT_OVER_SECONDS = 24 * 3600.0

PREFIX = ".mobileclip-"
"""How the name of whatever is not whole, or only for the time of a command, begins."""

_TEMPORARY, _ORIGINAL = ".tmp", ".before"


def is_left_over(name: str) -> bool:
    """Return whether a file or folder of this name is one of our marks, and no person's."""
    return name == LOCK or name.startswith(PREFIX)


def temporary_beside(path: Path) -> Path:
    """Return a name of this process's own in the folder of a path, which is swept at the first use."""
    sweep(path.parent)
    return path.parent / f"{_name()}{_TEMPORARY}"


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of processes that died, and put originals back; once a process and folder."""
    _sweep(folder, os.getpid())


@cache
def _sweep(folder: Path, _: int) -> None:
    for left in list(folder.glob(f"{PREFIX}*")):
        with suppress(OSError):
            clear = {_TEMPORARY: remove_tree, _ORIGINAL: _put_back}.get(left.suffix)
            is_old = time.time() - left.lstat().st_mtime > LEFT_OVER_SECONDS
            if clear is not None and (is_old or _is_of_the_dead(left.name)):
                clear(left)


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
        pass
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


_FILE_MODE = 0o666
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside a file, and put what was written there in the file's place when the block ends.

    File and folder are on the disk when it returns; an error leaves nothing behind. What processes that died have left
    in the folder is removed at the first file that this one writes there. A link stays, and the file that it leads to
    is replaced; a file that is replaced keeps its permissions. To a pipe, a device or an open stream, such as
    `/dev/stdout`, the content is written when the block ends; until then it is in the temporary directory (`TMPDIR`).

    Args:
        path: replaced where it exists; its directory must exist.

    Raises:
        OSError: if the file cannot be written.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
            yield Path(folder) / "content"
            with (Path(folder) / "content").open("rb") as source, _opened_stream(path) as stream:
                shutil.copyfileobj(source, stream)
        return
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = temporary_beside(place)
    try:
        try:
            # Made here, so that a folder that cannot be written to is told from what goes wrong later.
            with temporary.open("xb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            with suppress(FileNotFoundError):
                mode = stat.S_IMODE(path.stat().st_mode)
                temporary.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)
        except OSError as error:
            raise unwritable(error, path) from error
        with _named(path, temporary):
            yield temporary
            with temporary.open("r+b") as stream:
                # Libraries may put a file of their own under this name, which its owner alone could read.
                temporary.chmod(mode)
                os.fsync(stream.fileno())
            move_into_place(temporary, place)
    finally:
        with suppress(OSError):
            temporary.unlink()


def is_stream(path: Path) -> bool:
    """Return whether there is a pipe, a device or what this process prints to, into which is written as it is."""
    try:
        status = path.stat()
    except OSError:
        return False
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or _printed_to(status) is not None


def _opened_stream(path: Path) -> IO[bytes]:
    printed_to = _printed_to(path.stat())
    # Opened anew, a file that is printed to would be written from its beginning, over what was printed.
    return path.open("wb") if printed_to is None else os.fdopen(os.dup(printed_to), "wb")


def _printed_to(status: os.stat_result) -> int | None:
    """Return the number of the standard stream that is open on a file; None where none is."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(number)):
                return number
    return None


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Let an error of a full disk name what is to be written, and not its temporary place."""
    try:
        yield
    except Exception as error:
        # PyTorch raises an error of its own where a stream raises one.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in _FULL:
            raise
        if cause.filename is not None and not os.fsdecode(cause.filename).startswith(str(temporary)):
            raise
        raise unwritable(cause, path) from error


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside a path, and put it there with all that was written to it when the block ends.

    Its files are on the disk when it returns; an error leaves nothing behind, and what processes that died have left
    is removed as by `atomic_path`. Where another process was quicker, its folder stays. A folder that is replaced is
    moved aside first; where the process is killed before the new one is there, the next to write in its parent puts it
    back.

    Args:
        path: path of the folder. Its parents are made.
        overwrite: whether a folder that is there is replaced, once the new one is whole; nothing may be there without.

    Raises:
        ValueError: if it has no name of its own, as `.` and `..` have none.
        FileExistsError: if there is something that may not be replaced.
        OSError: if it cannot be written.
    """
    if path.name in ("", ".."):
        raise ValueError(f"no folder can be put in the place of {path}; give one a name, such as {path / 'out'}")
    sweep(path.parent)
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.mkdir()
    except OSError as error:
        raise unwritable(error, path) from error
    try:
        with _named(path, temporary):
            yield temporary
            mode = stat.S_IMODE(temporary.stat().st_mode) & _FILE_MODE
            for folder, _, names in os.walk(temporary):
                for name in names:
                    Path(folder, name).chmod(mode)
                    with Path(folder, name).open("r+b") as stream:
                        os.fsync(stream.fileno())
                _synchronise(Path(folder))
        if path.exists() and overwrite:
            _replace(temporary, path)
        else:
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():  # or another process has put one there meanwhile
                    raise
        _synchronise(path.parent)
    finally:
        with suppress(OSError):
            remove_tree(temporary)


def _replace(temporary: Path, path: Path) -> None:
    """Put a folder where another is, whose files are at the temporary path from then on.

    The original is put into a new folder while its replacement, whose inode that folder's name has, takes its place.
    """
    holder = path.parent / f"{_name()}-{temporary.stat().st_ino}{_ORIGINAL}"
    holder.mkdir()
    path.rename(holder / path.name)
    temporary.rename(path)
    (holder / path.name).rename(temporary)
    holder.rmdir()


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file of the same disk, and put its new name on the disk."""
    source.replace(target)
    _synchronise(target.parent)


def unwritable(error: OSError, path: Path) -> OSError:
    """Return an error that says which file cannot be written, and what to do about it."""
    if error.errno in _FULL:
        said = os.strerror(error.errno)  # and not what an error of a file within already says
        return OSError(error.errno, f"{path} cannot be written: {said}; make room and run this again")
    return OSError(error.errno, f"{path} cannot be written: {error.strerror or error}")


def _synchronise(folder: Path) -> None:
    """Put the folder's entries on the disk: without, a file's new name may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Network and FUSE folders that cannot do this do it by themselves, or not at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


_FLATTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


def require_output(path: AnyPath, *, overwrite: bool, suffixes: Collection[str] = ()) -> None:
    """Make sure that a file can be written, and that nothing is lost by it.

    Args:
        path: path of the file; a pipe or a device, such as `/dev/stdout`, is written to as it is, whatever its name.
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
        path: path of the folder, which need not exist.
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
