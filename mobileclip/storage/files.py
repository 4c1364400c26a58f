"""Reads, writes, lists and hashes files at local paths and remote URLs."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from mobileclip.storage.atomic import atomic_path
from mobileclip.storage.backend import Backend, Info, RemoteStream, retried
from mobileclip.storage.urls import AnyPath, is_remote, is_web, join, local_path, without_secrets

_BUFFER_BYTES = 2**20
_PIECE_BYTES = 2**22
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def check_address(path: AnyPath) -> None:
    """Check, without connecting, that this machine can open URLs with the scheme of `path`.

    Raises:
        ValueError: if the URL scheme is unsupported, or a package is missing; the message names the package.
    """
    if is_remote(path):
        backend_of(path).check(os.fspath(path))


def backend_of(path: AnyPath) -> Backend:
    """Return the backend for a URL."""
    if is_web(path):
        from mobileclip.storage.web import WebBackend

        return WebBackend()
    from mobileclip.storage.remote import FsspecBackend

    return FsspecBackend()


@contextmanager
def open_read(path: AnyPath, *, num_attempts: int | None = None, regular: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for reading in binary mode, with seeking.

    Args:
        path: path or URL.
        num_attempts: maximum number of attempts to connect to a remote store; None for `StoreLimits.num_attempts`.
        regular: whether to reject local pipes and devices, which may block or never end.

    Raises:
        FileNotFoundError: if the file does not exist.
        StorageError: if a store fails when the file is opened or read.
        OSError: if the file cannot be read for another reason.
        ValueError: if the URL scheme is unsupported, or a package is missing.
    """
    if not is_remote(path):
        status = local_path(path).stat()
        # Files in /proc state the size 0 and may never end, so an empty file is not opened.
        is_regular = stat.S_ISREG(status.st_mode)
        if regular and not is_regular:
            raise OSError("the path is a folder, pipe or device, expected a regular file")
        with local_path(path).open("rb") if status.st_size or not is_regular else io.BytesIO() as stream:
            yield stream
        return
    raw = RemoteStream(backend_of(path), os.fspath(path), num_attempts)
    with io.BufferedReader(raw, _BUFFER_BYTES) as reader:
        yield reader


def read_bytes(path: AnyPath, *, limit: int, num_attempts: int | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: path or URL.
        limit: maximum size in bytes; reading a larger file stops after `limit + 1` bytes.
        num_attempts: maximum number of attempts to connect to a remote store; None for `StoreLimits.num_attempts`.

    Raises:
        OSError: if the file cannot be read, or exceeds the limit.
        ValueError: if the URL scheme is unsupported, or a package is missing.
    """
    pieces = []
    missing = limit + 1
    with open_read(path, num_attempts=num_attempts) as stream:
        # A single read would allocate memory for the whole limit, even for a small file.
        while missing and (piece := stream.read(min(missing, _PIECE_BYTES))):
            pieces.append(piece)
            missing -= len(piece)
    if not missing:
        raise OSError(f"{without_secrets(path)} has more than {limit} bytes")
    return b"".join(pieces)


def read_if_exists(path: AnyPath, *, limit: int) -> bytes | None:
    """Return the content of a file; None if the path is missing or a directory.

    Args:
        path: path or URL.
        limit: maximum size in bytes; reading a larger file stops after `limit + 1` bytes.

    Raises:
        OSError: if the file cannot be read, or exceeds the limit.
        ValueError: if the URL scheme is unsupported, or a package is missing.
    """
    try:
        return read_bytes(path, limit=limit)
    except _NO_FILE:
        return None


def exists(path: AnyPath) -> bool:
    """Return whether the path is an existing file, not a directory.

    Raises:
        OSError: if the path cannot be checked.
    """
    try:
        file_info(path)
    except _NO_FILE:
        return False
    return True


def is_directory(path: AnyPath) -> bool:
    """Return whether the path is a directory; on a store without directories, whether files exist below the path."""
    if is_remote(path):
        return retried(lambda: backend_of(path).is_directory(os.fspath(path)))
    return local_path(path).is_dir()


def size(path: AnyPath) -> int | None:
    """Return the size of a file in bytes; None if a web server does not state the size.

    Raises:
        OSError: if the file does not exist, or its store cannot be reached.
    """
    return file_info(path).size


def fingerprint(path: AnyPath) -> str:
    """Return a short string that changes with the file: size and modification time, or the store's version.

    A reset modification time or a power failure can hide a change. `content_hash` reads the file and sees every change.

    Raises:
        OSError: if the file does not exist, or its store cannot be reached.
    """
    return file_info(path).fingerprint


def make_directory(path: AnyPath) -> None:
    """Create a missing directory and missing parents; do nothing for remote stores."""
    if not is_remote(path):
        local_path(path).mkdir(parents=True, exist_ok=True)


def make_directory_of(path: AnyPath) -> None:
    """Create the parent directory of a file; see `make_directory`."""
    if not is_remote(path):
        local_path(path).parent.mkdir(parents=True, exist_ok=True)


def remove(path: AnyPath) -> None:
    """Remove a file, if it exists."""
    if not is_remote(path):
        local_path(path).unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        retried(lambda: backend_of(path).remove(os.fspath(path)))


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[IO[bytes]]:
    """Yield a stream for the content of a file; the file appears at the end of the block, but not after an error.

    The stream of a local file writes to a temporary file in the same directory. The stream of a remote file writes to
    the local temporary directory (`TMPDIR`); at the end of the block, the function uploads the complete file.

    Args:
        path: path or URL of the file; an existing file is replaced. The directory of a local file must exist.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the URL is read-only, the URL scheme is unsupported, or a package is missing.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        yield stream


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[Path]:
    """Yield the path of a temporary local file that becomes `path` at the end of the block; see `atomic_write`.

    Args:
        path: path or URL of the file; an existing file is replaced. The directory of a local file must exist.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the URL is read-only, the URL scheme is unsupported, or a package is missing.
    """
    if not is_remote(path):
        with atomic_path(local_path(path)) as temporary:
            yield temporary
        return
    backend, address = backend_of(path), os.fspath(path)
    backend.check(address, write=True)
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        spool = Path(folder) / "upload"
        yield spool
        retried(lambda: backend.upload(str(spool), address))


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Yield a local path with the content of a file: the file itself, or a temporary copy.

    Args:
        path: path or URL; the function copies a remote file to the temporary directory (`TMPDIR`).

    Raises:
        OSError: if the file cannot be read, or the copy cannot be written.
        ValueError: if the URL scheme is unsupported, or a package is missing.
    """
    if not is_remote(path):
        file_info(path)  # raises FileNotFoundError for a missing file
        yield local_path(path)
        return
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        copy = Path(folder) / "download"
        with open_read(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE_BYTES)
        yield copy


def rename(source: AnyPath, name: str) -> str:
    """Rename a file within its directory, replacing an existing file, and return the new path.

    Raises:
        OSError: if renaming fails.
    """
    if not is_remote(source):
        return str(local_path(source).replace(local_path(source).with_name(name)))
    target = join(os.fspath(source).rpartition("/")[0], name)
    retried(lambda: backend_of(source).rename(os.fspath(source), target))
    return target


def write_text(path: AnyPath, text: str) -> None:
    """Write text in UTF-8 atomically; see `atomic_write`."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def file_info(path: AnyPath) -> Info:
    """Return size, version and ETag of a file.

    Raises:
        OSError: if the file does not exist, or its store cannot be reached.
    """
    if is_remote(path):
        return retried(lambda: backend_of(path).info(os.fspath(path)))
    status = local_path(path).stat()
    if local_path(path).is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    return Info(size=status.st_size, version=str(status.st_mtime_ns))


def modified_ns(status: os.stat_result) -> int:
    """Return a file's modification time in nanoseconds since 1970, wrapped to a signed 64-bit integer.

    File systems allow times after the year 2262, but SQLite and Parquet cannot store such times in 64 bits.
    """
    return (status.st_mtime_ns + 2**63) % 2**64 - 2**63


_MAC_ARCHIVE, _FOLDER = "__MACOSX", "folder"
_Tell = Callable[[str, str], None]


def list_files(directory: AnyPath, suffix: str = "", *, recursive: bool = False) -> tuple[str, ...]:
    """Return the sorted paths of the files in a directory; empty if the directory is missing.

    Args:
        directory: path or URL.
        suffix: suffix of the files to return, such as `.tar`; empty for all files.
        recursive: whether to include files in subdirectories.

    Raises:
        OSError: if the directory cannot be listed.
        ValueError: if the URL belongs to a web server, which cannot list files.
    """
    names = sorted(name for name in find_files(directory, recursive=recursive) if name.endswith(suffix))
    return tuple(join(directory, name) for name in names)


def find_files(
    directory: AnyPath, *, recursive: bool = True, outside: bool = True, passed_over: _Tell | None = None
) -> dict[str, str]:
    """Return the fingerprints of the files in a directory, by path relative to the directory, with `/` separators.

    The search skips inaccessible entries, and ignores entries that vanish during the search.

    Args:
        directory: path or URL.
        recursive: whether to include files in subdirectories, except for hidden directories and links to directories.
        outside: whether to follow links to files outside the directory.
        passed_over: function called with the relative path and kind of every skipped entry: `hidden_folder`,
            `linked_folder`, `outside_link`, `broken_link`, `special_file`, `unreadable_folder` or `unreadable_file`.

    Raises:
        OSError: if the directory cannot be listed.
        ValueError: if the URL belongs to a web server, which cannot list files.
    """
    found = _find(directory, passed_over, recursive=recursive, outside=outside)
    return {name: info.fingerprint for name, info in found.items()}


def find_sizes(directory: AnyPath, names: Iterable[str] = ("",)) -> dict[str, int | None]:
    """Return the sizes in bytes of all files in the named files' folders, by relative path; None for an unknown size.

    The function lists whole folders instead of requesting single files.

    Args:
        directory: path or URL of a folder.
        names: relative paths of files; the function lists the folders of these files. By default, the function lists
            only `directory`.

    Raises:
        OSError: if the directory cannot be listed.
        ValueError: if the URL belongs to a web server, which cannot list files.
    """
    return {
        f"{folder}{name}": info.size
        for folder in dict.fromkeys(name[: name.rfind("/") + 1] for name in names)
        for name, info in _find(join(directory, folder), None, recursive=False).items()
    }


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is hidden, or is `__MACOSX`, the folder of macOS archive metadata."""
    return name.startswith(".") or name == _MAC_ARCHIVE


def _find(directory: AnyPath, tell: _Tell | None, *, recursive: bool, outside: bool = True) -> dict[str, Info]:
    tell = tell or (lambda *_: None)
    if is_remote(directory):
        found = retried(lambda: backend_of(directory).find(os.fspath(directory), recursive=recursive))
        hidden = {name: folder for name in found if (folder := _hidden_folder(name))}
        for folder in dict.fromkeys(hidden.values()):
            tell(folder, "hidden_folder")
        return {name: info for name, info in found.items() if name not in hidden}
    top = local_path(directory)
    return dict(_walk(top, tell, recursive=recursive, outside=outside)) if top.is_dir() else {}


def _walk(top: Path, passed_over: _Tell, *, recursive: bool, outside: bool) -> Iterator[tuple[str, Info]]:
    resolved = top.resolve()
    waiting = [(top, "")]
    while waiting:
        directory, prefix = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                listed = list(entries)
        except OSError as error:
            if not prefix:
                raise
            if not isinstance(error, FileNotFoundError):
                passed_over(prefix.rstrip("/"), "unreadable_folder")
            continue
        for entry in listed:
            name, found = f"{prefix}{entry.name}", _look_at(entry)
            if isinstance(found, Info) and not outside and entry.is_symlink():
                found = found if Path(entry.path).resolve().is_relative_to(resolved) else "outside_link"
            if isinstance(found, Info):
                yield name, found
            elif found != _FOLDER:
                passed_over(name, found)
            elif recursive:
                waiting.append((Path(entry.path), f"{name}/"))


def _look_at(entry: os.DirEntry[str]) -> Info | str:
    """Return the size and version of a file, or the kind of any other entry; a vanished entry counts as a folder."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return "hidden_folder" if is_hidden(entry.name) else _FOLDER
        if entry.is_file():
            status = entry.stat()
            return Info(size=status.st_size, version=str(status.st_mtime_ns))
        if not entry.is_symlink():
            return "special_file"
        return "linked_folder" if entry.is_dir() else "special_file" if Path(entry.path).exists() else "broken_link"
    except FileNotFoundError:
        return _FOLDER
    except OSError:
        # The link points to itself.
        return "broken_link" if entry.is_symlink() else "unreadable_file"


def _hidden_folder(name: str) -> str:
    """Return the topmost hidden folder in the path of a file in a store, or an empty string."""
    parts = name.split("/")
    return next(("/".join(parts[: place + 1]) for place, part in enumerate(parts[:-1]) if is_hidden(part)), "")


# More threads make reading and hashing no faster.
_MOST_THREADS = 8
_BLOCK_BYTES = 2**20
# A file that has just changed may change again without a new time, because file systems store times coarsely.
_SETTLED_SECONDS = 2.0


def content_hash(path: AnyPath) -> str:
    """Return the SHA-256 of a file; for a remote file with an ETag or similar identifier, size and identifier.

    The function reads local files at about 1 GB/s, and only once per process while the size and times of the file stay
    unchanged. The function also reads remote files without an identifier.

    Raises:
        OSError: if the file is missing or cannot be read.
    """
    if is_remote(path):
        info = file_info(path)
        return f"{info.size} {info.etag}" if info.etag else _read(path)
    file = local_path(path)
    status = file.stat()
    # Programs cannot reset ctime, the time of the last change of any kind.
    times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    is_settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    return _read_once(str(file.absolute()), status.st_dev, status.st_ino, *times) if is_settled else _read(path)


@lru_cache(maxsize=100_000)
def _read_once(path: str, *_: int) -> str:
    return _read(path)


def content_hashes(paths: Iterable[AnyPath]) -> list[str]:
    """Return the `content_hash` of several files, read in parallel; `"missing"` for a missing file.

    Raises:
        OSError: if a file cannot be read.
    """
    with ThreadPoolExecutor(_MOST_THREADS) as pool:
        return list(pool.map(_hash_or_missing, paths))


def _hash_or_missing(path: AnyPath) -> str:
    try:
        return content_hash(path)
    except FileNotFoundError:
        return "missing"


def _read(path: AnyPath) -> str:
    digest = hashlib.sha256()
    with open_read(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
