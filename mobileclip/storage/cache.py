"""Caches remote files in a local folder, and removes the least recently used files first."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import attrs
from attrs import validators

from mobileclip.storage.atomic import LEFT_OVER_SECONDS, exclusive, move_into_place
from mobileclip.storage.files import open_read, size
from mobileclip.storage.urls import is_remote
from mobileclip.strict import strict

if TYPE_CHECKING:
    from typing_extensions import Buffer


def state_folder() -> Path | None:
    """Return the user's folder for program state, which may not exist yet; None without a home folder.

    The folder is `$XDG_STATE_HOME/mobileclip`, by default `~/.local/state/mobileclip`.

    Source: the XDG Base Directory Specification.
    """
    return _user_folder("XDG_STATE_HOME", ".local/state")


def cache_folder() -> Path | None:
    """Return the user's cache folder, which may not exist yet; None without a home folder.

    The folder is `$XDG_CACHE_HOME/mobileclip`, by default `~/.cache/mobileclip`.

    Source: the XDG Base Directory Specification.
    """
    return _user_folder("XDG_CACHE_HOME", ".cache")


def _user_folder(variable: str, default: str) -> Path | None:
    given = Path(os.environ.get(variable, ""))
    try:
        folder = given if given.is_absolute() else Path.home() / default
    except RuntimeError:
        return None
    return folder / "mobileclip" if folder.is_absolute() else None


_SUFFIX, _UNFINISHED = ".copy", ".part"
# Maximum number of bytes to read after the end mark of a tar file, so that the copy is complete.
_REST_BYTES = 2**20
# Time to wait for the folder's lock; the process that holds the lock scans the file names.
_LOCK_SECONDS = 60.0


@attrs.frozen(kw_only=True, field_transformer=strict)
class FileCache:
    """A cache folder for remote files, which several processes may share.

    The first complete read of a file stores a copy. The cache removes old copies after a new copy is complete, so the
    folder temporarily exceeds the limit. After a day, the cache removes unfinished copies of killed processes. The name
    of a copy contains the file size, so the cache detects truncated copies. The cache does not store files of unknown
    size.

    The cache assumes that remote files do not change; if a remote file changes, delete the folder.

    Args:
        path: path of the cache folder; the cache creates a missing folder.
        max_bytes: maximum total size of all complete copies, in bytes; 100 GB by default.
    """

    path: Path
    max_bytes: int = attrs.field(default=10**11, validator=validators.gt(0))

    @contextmanager
    def open_read(self, address: str) -> Iterator[IO[bytes]]:
        """Open a file, from the cache if possible; open a local file directly.

        Raises:
            OSError: if the file cannot be read; a copy that cannot be stored raises no error.
        """
        if not is_remote(address):
            with open_read(address) as stream:
                yield stream
            return
        name = hashlib.sha256(address.encode()).hexdigest()
        copy = self._found(name)
        if copy is None:
            with open_read(address) as stream, self._copying(stream, address, name) as both:
                yield both
            return
        with copy:
            yield copy

    def _found(self, name: str) -> IO[bytes] | None:
        """Open the cached copy of a file and remove copies of the wrong size; None without a copy."""
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(name) and entry.name.endswith(_SUFFIX):
                    if entry.name == _copy_name(name, entry.stat().st_size):
                        with suppress(OSError):
                            os.utime(entry.path)
                        return Path(entry.path).open("rb")
                    Path(entry.path).unlink()
        return None

    @contextmanager
    def _copying(self, stream: IO[bytes], address: str, name: str) -> Iterator[IO[bytes]]:
        """Yield a stream; reading from the stream also fills a copy in the cache, if the cache can store the file."""
        part, target = self.path / f"{name}.{secrets.token_hex(8)}{_UNFINISHED}", None
        with suppress(OSError):
            num_bytes = size(address)
            if num_bytes is not None and num_bytes <= self.max_bytes:
                self.path.mkdir(parents=True, exist_ok=True)
                target = part.open("xb")
        if target is None or num_bytes is None:
            yield stream
            return
        reader = _CopyingReader(stream, target)
        try:
            yield io.BufferedReader(reader)
            if reader.finish() == num_bytes:
                with suppress(OSError, ValueError):
                    target.flush()
                    os.fsync(target.fileno())
                    with exclusive(self.path, wait_seconds=_LOCK_SECONDS):
                        if self._make_room(num_bytes):
                            target.close()
                            move_into_place(part, self.path / _copy_name(name, num_bytes))
        finally:
            with suppress(OSError):
                target.close()
            with suppress(OSError):
                part.unlink()

    def _make_room(self, num_bytes: int) -> bool:
        """Remove old unfinished copies, and least recently read copies as needed; return whether a new copy fits."""
        total, copies = num_bytes, []
        for entry in os.scandir(self.path):
            with suppress(OSError):  # another process has removed the file
                status = entry.stat()
                if entry.name.endswith(_UNFINISHED) and time.time() - status.st_mtime > LEFT_OVER_SECONDS:
                    Path(entry.path).unlink()
                elif entry.name.endswith(_SUFFIX):
                    total += status.st_size
                    copies.append((status.st_mtime, status.st_size, entry.path))
        for _, freed, path in sorted(copies):
            if total <= self.max_bytes:
                break
            with suppress(OSError):
                Path(path).unlink()
                total -= freed
        return total <= self.max_bytes


def _copy_name(name: str, num_bytes: int) -> str:
    return f"{name}-{num_bytes}{_SUFFIX}"


class _CopyingReader(io.RawIOBase):
    """A stream that, on each read, also writes the bytes to a file, as long as writing succeeds."""

    def __init__(self, stream: IO[bytes], target: IO[bytes]) -> None:
        super().__init__()
        self._stream, self._target = stream, target
        self._num_read = self._num_copied = 0
        self._at_end = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Read into the buffer, and copy the bytes to the file."""
        view = memoryview(buffer).cast("B")
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._at_end = not data
        self._num_read += len(data)
        with suppress(OSError):
            self._num_copied += self._target.write(data)
        return len(data)

    def finish(self) -> int | None:
        """Read a short remainder of the file, and return the size of the copy; None if the copy is incomplete."""
        rest = _REST_BYTES
        while not self._at_end and rest > 0:
            rest -= self.readinto(bytearray(min(rest, 2**16)))
        return self._num_copied if self._at_end and self._num_copied == self._num_read else None
