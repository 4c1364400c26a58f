"""Writes local files and folders atomically, locks output folders, and checks output paths."""

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

from mobileclip.storage.urls import AnyPath, is_remote, local_path

LOCK = ".lock"


@contextmanager
def exclusive(directory: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Lock a folder while a job writes to it; the system releases the lock when the process ends.

    The function never removes the lock file, because two waiting processes could then both acquire the lock.

    Args:
        directory: folder to lock; the function creates a missing folder.
        wait_seconds: maximum time to wait for the lock, in seconds; 0 for no wait.

    Raises:
        ValueError: if this or another process already holds the lock.
        OSError: if the folder is not writable, or its file system does not support locks.
    """
    lock = filelock.FileLock(directory / LOCK, timeout=wait_seconds)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        waited = f", still after waiting for {wait_seconds:g} s" if wait_seconds else ""
        raise ValueError(
            f"another job is writing to {directory}{waited}; wait for the job, end leftover processes of a killed "
            "launcher, or choose another output"
        ) from None
    except NotImplementedError as error:
        raise OSError(f"{directory} is on a file system without locks ({error}); choose another output") from error
    except OSError as error:
        raise OSError(
            error.errno, f"{directory} cannot be written to ({error.strerror or error}); choose another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


# A temporary file not modified for this long is a leftover, even if a different machine wrote it.
LEFT_OVER_SECONDS = 24 * 3600.0

PREFIX = ".mobileclip-"
"""Name prefix of temporary files and folders, including incomplete outputs."""

_TEMPORARY, _ORIGINAL = ".tmp", ".before"


def is_left_over(name: str) -> bool:
    """Return whether a file name belongs to a temporary file or lock of this library."""
    return name == LOCK or name.startswith(PREFIX)


def temporary_path(path: Path) -> Path:
    """Return a new temporary path in the folder of `path`; the first call for a folder removes old temporary files."""
    sweep(path.parent)
    return path.parent / f"{_name()}{_TEMPORARY}"


def sweep(folder: Path) -> None:
    """Remove temporary files of dead processes, and restore half-replaced folders, once per process and folder."""
    _sweep(folder, os.getpid())


@cache
def _sweep(folder: Path, _: int) -> None:
    for left in list(folder.glob(f"{PREFIX}*")):
        with suppress(OSError):
            clear = {_TEMPORARY: remove_tree, _ORIGINAL: _put_back}.get(left.suffix)
            is_old = time.time() - left.lstat().st_mtime > LEFT_OVER_SECONDS
            if clear is not None and (is_old or _has_dead_writer(left.name)):
                clear(left)


def _put_back(holder: Path) -> None:
    """Restore the original folder, or remove the original if the replacement (known by inode) is in place."""
    inode = holder.name.removesuffix(_ORIGINAL).rpartition("-")[2]
    for original in list(holder.iterdir()):
        place = holder.parent / original.name
        if not os.path.lexists(place):
            original.rename(place)
        elif str(place.lstat().st_ino) == inode:
            remove_tree(original)
    # This fails if something else has taken the place; then the original stays in the holder.
    holder.rmdir()


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _name() -> str:
    return f"{PREFIX}{_place()}-{os.getpid()}-{secrets.token_hex(6)}"


def _has_dead_writer(name: str) -> bool:
    """Return whether a temporary file name contains the ID of a dead process of this machine."""
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
    """Return a short identifier of this boot of the machine or container, which is the scope of process IDs.

    Machines that share a folder may have processes with equal IDs.
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
    """Yield a temporary path, and move the temporary file into place at the end of the block.

    The function syncs file and folder to disk at the end; an error leaves no output. The first write in a folder
    removes temporary files of dead processes. For a link, the function replaces the target of the link. A new file has
    the permissions of the replaced file. For a pipe, a device or an open stream, such as `/dev/stdout`, the temporary
    directory (`TMPDIR`) stores the content until the end of the block.

    Args:
        path: path of the file, which may exist, in an existing directory.

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
    temporary = temporary_path(place)
    try:
        try:
            # Create the file here, so that an unwritable folder raises a different error than later problems.
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
                # Libraries may replace the file by a new file that only the owner can read.
                temporary.chmod(mode)
                os.fsync(stream.fileno())
            move_into_place(temporary, place)
    finally:
        with suppress(OSError):
            temporary.unlink()


def is_stream(path: Path) -> bool:
    """Return whether the path is a pipe, device or standard stream, which a writer cannot replace by a file."""
    try:
        status = path.stat()
    except OSError:
        return False
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or _printed_to(status) is not None


def _opened_stream(path: Path) -> IO[bytes]:
    printed_to = _printed_to(path.stat())
    # Reopening the file of a standard stream would overwrite its earlier output.
    return path.open("wb") if printed_to is None else os.fdopen(os.dup(printed_to), "wb")


def _printed_to(status: os.stat_result) -> int | None:
    """Return the file descriptor of the standard stream that writes to the file; None for any other file."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(number)):
                return number
    return None


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Convert a disk-full error to an error that names the output instead of the temporary path."""
    try:
        yield
    except Exception as error:
        # If writing to a stream fails, PyTorch raises its own error.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in _FULL:
            raise
        if cause.filename is not None and not os.fsdecode(cause.filename).startswith(str(temporary)):
            raise
        raise unwritable(cause, path) from error


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder, and move the temporary folder into place at the end of the block.

    The function syncs the files to disk at the end; an error leaves no output. Like `atomic_path`, the function removes
    temporary files of dead processes. If another process has created the folder during the block, the folder of the
    other process stays. To replace a folder, the function first moves the old folder aside; if the process is killed
    at that moment, the next write in the parent folder restores the old folder.

    Args:
        path: path of the folder; the function creates missing parents.
        overwrite: whether to replace an existing folder after the new folder is complete.

    Raises:
        ValueError: if the path has no name, such as `.` or `..`.
        FileExistsError: if the path exists and `overwrite` is False.
        OSError: if the folder cannot be written.
    """
    if path.name in ("", ".."):
        raise ValueError(
            f"{path} cannot be replaced by a folder; choose a path that ends with a name, such as {path / 'out'}"
        )
    sweep(path.parent)
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
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
                if not path.is_dir():  # otherwise another process has put a folder there meanwhile
                    raise
        _synchronise(path.parent)
    finally:
        with suppress(OSError):
            remove_tree(temporary)


def _replace(temporary: Path, path: Path) -> None:
    """Swap a folder with the temporary folder.

    The original stays in a holder folder until the replacement is in place. The holder name contains the inode of the
    replacement.
    """
    holder = path.parent / f"{_name()}-{temporary.stat().st_ino}{_ORIGINAL}"
    holder.mkdir()
    path.rename(holder / path.name)
    temporary.rename(path)
    (holder / path.name).rename(temporary)
    holder.rmdir()


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file on the same disk, and sync the target folder."""
    source.replace(target)
    _synchronise(target.parent)


def unwritable(error: OSError, path: Path) -> OSError:
    """Return an error that names the unwritable file and a remedy."""
    if error.errno in _FULL:
        said = os.strerror(error.errno)  # not `error.strerror`, which may contain the message of an inner error
        return OSError(error.errno, f"{path} cannot be written: {said}; free some space and run the command again")
    return OSError(error.errno, f"{path} cannot be written: {error.strerror or error}")


def _synchronise(folder: Path) -> None:
    """Sync the entries of a folder, because a power failure may otherwise lose a new file name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Network and FUSE file systems without this operation sync by themselves or not at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


_FLATTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


def require_output(path: AnyPath, *, overwrite: bool, suffixes: Collection[str] = ()) -> None:
    """Check that a file can be written without overwriting existing data.

    Args:
        path: path of the file; pipes and devices, such as `/dev/stdout`, may have any name.
        overwrite: whether to replace an existing file.
        suffixes: allowed suffixes, such as `.npz`; empty for any name.

    Raises:
        ValueError: if the suffix is not allowed (the message lists the suffixes), or the path is a URL.
        FileExistsError: if the file exists and `overwrite` is False.
        OSError: if the path is a folder, or the parent folder cannot be created or is not writable.
    """
    place = _local(path)
    if is_stream(place):
        return
    if suffixes and place.suffix.lower() not in suffixes:
        raise ValueError(f"{path} cannot be written: the name must end with {' or '.join(suffixes)}")
    if _is_there(place):
        if place.is_dir():
            raise IsADirectoryError(
                f"{path} is a folder; expected the path of a file, such as {place / _example(suffixes)}"
            )
        if not overwrite:
            raise FileExistsError(f"{path} already exists; choose another name, or replace it with `--overwrite`")
    _require_writable(Path(os.path.realpath(place)).parent)


def require_output_folder(path: AnyPath, *, overwrite: bool, marker: str = "") -> None:
    """Check that a folder can be written without overwriting existing data.

    Args:
        path: path of the folder, which may be missing.
        overwrite: whether to replace a folder that contains `marker`.
        marker: name of a file that identifies replaceable folders. A non-empty folder without the marker is not
            replaceable. Locks and temporary files of killed processes do not count as content.

    Raises:
        FileExistsError: if the folder has content, and `overwrite` is False or `marker` is missing.
        OSError: if the path is a file, or the folder cannot be created or is not writable.
        ValueError: if the path is a URL.
    """
    place = _local(path)
    sweep(place.parent)
    if not _is_there(place):
        _require_writable(place.parent)
        return
    if not place.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected a folder")
    if has_content(place):
        if not overwrite:
            raise FileExistsError(f"{path} already exists; choose another folder, or replace it with `--overwrite`")
        if not (place / marker).is_file():
            raise FileExistsError(
                f"{path} has files but no {marker}, so `--overwrite` does not apply; choose another folder"
            )
    _require_writable(place)


def has_content(folder: Path) -> bool:
    """Return whether a folder contains anything except locks and temporary files."""
    return any(not is_left_over(entry.name) for entry in folder.iterdir())


def _local(path: AnyPath) -> Path:
    # pathlib merges the two slashes of a URL into one.
    if is_remote(path) or (isinstance(path, Path) and _FLATTENED.match(str(path))):
        raise ValueError(f"{os.fspath(path)} is a URL; expected a local path")
    return local_path(path)


def _is_there(place: Path) -> bool:
    """Return whether a file, folder or link exists, including broken links; raise an OSError for an invalid name."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _require_writable(folder: Path) -> None:
    """Raise an OSError if a folder cannot be created or is not writable."""
    nearest = next((one for one in (folder, *folder.parents) if _is_there(one)), None)
    if nearest is None:
        return
    if not nearest.is_dir():
        raise NotADirectoryError(f"nothing can be written to {folder}: {nearest} is not a folder")
    try:
        # Create an unnamed file, because permissions do not always show whether a folder is writable.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OSError(f"nothing can be written to {nearest} ({error.strerror}); choose another folder") from None


def _example(suffixes: Collection[str]) -> str:
    return f"result{next(iter(suffixes), '.txt')}"
