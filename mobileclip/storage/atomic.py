"""Local files and folders that appear whole or not at all, whatever ends the process or the machine in between."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mobileclip.storage.leftovers import original_beside, remove_tree, sweep, temporary_beside

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
        path: of the folder. Its parents are made.
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
            _move_folder(temporary, path)
        _synchronise(path.parent)
    finally:
        with suppress(OSError):
            remove_tree(temporary)


def _replace(temporary: Path, path: Path) -> None:
    """Put a folder where another is, whose files are at the temporary path from then on."""
    original = original_beside(path, temporary)
    path.rename(original)
    temporary.rename(path)
    original.rename(temporary)
    original.parent.rmdir()


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
