"""The operations on a file, on local paths and remote URLs alike."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mobileclip.storage.addresses import AnyPath, backend_of, is_remote, join, local_path
from mobileclip.storage.atomic import atomic_path
from mobileclip.storage.backend import Info, RemoteStream, retried
from mobileclip.storage.printable import without_secrets

_BUFFER_BYTES = 2**20
_PIECE_BYTES = 2**22
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@contextmanager
def open_read(path: AnyPath, *, num_attempts: int | None = None, regular: bool = False) -> Iterator[IO[bytes]]:
    """Yield a file, opened for reading bytes from any position on.

    Args:
        path: path or URL.
        num_attempts: to connect, where a remote store fails; None for as many as the limits allow.
        regular: refuse pipes and devices of this machine, which may never end, or never begin.

    Raises:
        FileNotFoundError: if there is none.
        StorageError: if a store failed, also while reading.
        OSError: if it cannot be read for another reason.
        ValueError: if nothing knows the URL, or a package is missing.
    """
    if not is_remote(path):
        status = local_path(path).stat()
        # A file of /proc says that it is empty, and may never end.
        is_regular = stat.S_ISREG(status.st_mode)
        if regular and not is_regular:
            raise OSError("it is a folder, a pipe or a device")
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
        limit: bytes; a larger file is refused before more than that is read.
        num_attempts: to connect, where a remote store fails; None for as many as the limits allow.

    Raises:
        OSError: if the file cannot be read, or is larger.
        ValueError: if nothing knows the URL, or a package is missing.
    """
    pieces = []
    missing = limit + 1
    with open_read(path, num_attempts=num_attempts) as stream:
        # A stream that is asked for all takes the memory at once, however small the file is.
        while missing and (piece := stream.read(min(missing, _PIECE_BYTES))):
            pieces.append(piece)
            missing -= len(piece)
    if not missing:
        raise OSError(f"{without_secrets(path)} has more than {limit} bytes")
    return b"".join(pieces)


def read_if_there(path: AnyPath, *, limit: int) -> bytes | None:
    """Return the content of a file, or None where there is none; a directory is none.

    Args:
        path: path or URL.
        limit: bytes; a larger file is refused before more than that is read.

    Raises:
        OSError: if the file cannot be read, or is larger.
        ValueError: if nothing knows the URL, or a package is missing.
    """
    try:
        return read_bytes(path, limit=limit)
    except _NO_FILE:
        return None


def exists(path: AnyPath) -> bool:
    """Return whether there is a file; a directory is none.

    Raises:
        OSError: if that cannot be found out.
    """
    try:
        file_info(path)
    except _NO_FILE:
        return False
    return True


def is_directory(path: AnyPath) -> bool:
    """Return whether there is a directory; on a store without any, whether something lies below."""
    if is_remote(path):
        return retried(lambda: backend_of(path).is_directory(os.fspath(path)))
    return local_path(path).is_dir()


def size(path: AnyPath) -> int | None:
    """Return the number of bytes, or None where a web server does not say.

    Raises:
        OSError: if there is no such file, or its store cannot be reached.
    """
    return file_info(path).size


def fingerprint(path: AnyPath) -> str:
    """Return a short text that changes when the file is changed: size and time of change, or the store's own mark.

    Who puts the time back, or loses power, can change a file behind it; `content_hash` sees that, and reads the file.

    Raises:
        OSError: if there is no such file, or its store cannot be reached.
    """
    return file_info(path).fingerprint


def make_directory(path: AnyPath) -> None:
    """Make a directory with those above it, where it is missing; remote stores make theirs by themselves."""
    if not is_remote(path):
        local_path(path).mkdir(parents=True, exist_ok=True)


def make_directory_of(path: AnyPath) -> None:
    """Make the directory that a file is to lie in, as `make_directory` does."""
    if not is_remote(path):
        local_path(path).parent.mkdir(parents=True, exist_ok=True)


def remove(path: AnyPath) -> None:
    """Remove a file; it may be missing."""
    if not is_remote(path):
        local_path(path).unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        retried(lambda: backend_of(path).remove(os.fspath(path)))


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[IO[bytes]]:
    """Yield a stream whose content becomes the file when the block ends, and never otherwise; an error leaves nothing.

    A local file is written under a temporary name beside it. A remote one is written to the temporary directory of
    this machine (`TMPDIR`), which must have room for it, and uploaded when it is complete.

    Args:
        path: replaced where it exists; a local directory must exist.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the URL can only be read, nothing knows it, or a package is missing.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        yield stream


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[Path]:
    """Yield the path of a local file that takes its place at `path` when the block ends, as `atomic_write` does.

    Args:
        path: replaced where it exists; a local directory must exist.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the URL can only be read, nothing knows it, or a package is missing.
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
    """Yield a path on this machine with the content of a file: its own, or that of a copy for the time of the block.

    Args:
        path: path or URL; what is remote is copied to the temporary directory (`TMPDIR`).

    Raises:
        OSError: if the file cannot be read, or the copy not be written.
        ValueError: if nothing knows the URL, or a package is missing.
    """
    if not is_remote(path):
        file_info(path)  # what is missing is said here, as for the rest
        yield local_path(path)
        return
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        copy = Path(folder) / "download"
        with open_read(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE_BYTES)
        yield copy


def rename(source: AnyPath, name: str) -> str:
    """Give a file another name in its directory, and return its path there; one of that name is replaced.

    Raises:
        OSError: if that cannot be done.
    """
    if not is_remote(source):
        return str(local_path(source).replace(local_path(source).with_name(name)))
    target = join(os.fspath(source).rpartition("/")[0], name)
    retried(lambda: backend_of(source).rename(os.fspath(source), target))
    return target


def file_version(address: AnyPath) -> str | None:
    """Return the version of a file of a store, for `write_text_if`, or None where there is no such file.

    Raises:
        OSError: if the store cannot be reached.
    """
    try:
        return file_info(address).version
    except FileNotFoundError:
        return None


def write_text_if(address: AnyPath, text: str, version: str | None) -> bool:
    """Write a short text in UTF-8 to a store if the file is still of a version; return whether it was written.

    Of several that write at once, one succeeds; of stores that know no such condition, maybe several.

    Args:
        address: of the file.
        text: its new content.
        version: what `file_version` said; None where there was no file.

    Raises:
        OSError: if the store cannot be reached.
    """
    # One call alone: it may have been heeded though the answer was lost, and a second one would be refused then.
    return backend_of(address).write_if(os.fspath(address), text.encode(), version)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text in UTF-8; the file is there whole or not at all, see `atomic_write`."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def file_info(path: AnyPath) -> Info:
    """Return what is known about a file.

    Raises:
        OSError: if there is no such file, or its store cannot be reached.
    """
    if is_remote(path):
        return retried(lambda: backend_of(path).info(os.fspath(path)))
    status = local_path(path).stat()
    if local_path(path).is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    return Info(size=status.st_size, version=str(status.st_mtime_ns))


def modified_ns(status: os.stat_result) -> int:
    """Return when a file was last changed, in nanoseconds since 1970, modulo 2**64 as a signed integer of 64 bits.

    File systems have times after the year 2262, which such integers, and with them SQLite and Parquet, do not hold.
    """
    return (status.st_mtime_ns + 2**63) % 2**64 - 2**63
