"""Copies of remote files on this machine, for those that are read again; the oldest make room for the newest."""

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

from mobileclip.storage.addresses import is_remote
from mobileclip.storage.atomic import LEFT_OVER_SECONDS, exclusive, move_into_place
from mobileclip.storage.files import open_read, size
from mobileclip.strict import strict

if TYPE_CHECKING:
    from typing_extensions import Buffer


def state_folder() -> Path | None:
    """Return the user's folder for program state, which may not exist yet; None where there is no user.

    `XDG_STATE_HOME/mobileclip`, by default in `~/.local/state`.

    Source: the XDG Base Directory Specification.
    """
    return _user_folder("XDG_STATE_HOME", ".local/state")


def cache_folder() -> Path | None:
    """Return the user's folder of what can be made again, which need not be there; None where there is no user.

    `XDG_CACHE_HOME/mobileclip`, by default in `~/.cache`.

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
# What a reader leaves unread behind the end mark of a file, at most.
_REST_BYTES = 2**20
# Whoever has the folder's lock looks through its names.
_LOCK_SECONDS = 60.0


@attrs.frozen(kw_only=True, field_transformer=strict)
class FileCache:
    """A folder of copies, which several processes may share. A file is copied while it is first read, to its end.

    Room for a copy is made when it is whole: while files are copied, the folder has more than its bytes. What a killed
    process has left is removed after a day. A copy's name has its size: one that was cut is fetched anew. A file whose
    size nobody says is not kept.

    Remote files are taken not to change: delete the folder where they do.

    Args:
        path: the folder; created.
        max_bytes: max bytes of all whole copies together, 100 GB by default.
    """

    path: Path
    max_bytes: int = attrs.field(default=10**11, validator=validators.gt(0))

    @contextmanager
    def open_read(self, address: str) -> Iterator[IO[bytes]]:
        """Yield the content of a file, from here where it was read before; local files are read where they are.

        Raises:
            OSError: if it cannot be read; a copy that cannot be written is not kept, and nothing else.
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
        """Return the whole copy of a file, opened; one of another size than its name says is removed."""
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
        """Yield a file that is copied while it is read, or as it is where it cannot be kept."""
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
        """Remove what the dead have left, and the copies that were not read for longest, until so much fits."""
        total, copies = num_bytes, []
        for entry in os.scandir(self.path):
            with suppress(OSError):  # another process was quicker
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
    """Reads a stream and writes what it reads to a file, as far as that can be written."""

    def __init__(self, stream: IO[bytes], target: IO[bytes]) -> None:
        super().__init__()
        self._stream, self._target = stream, target
        self._num_read = self._num_copied = 0
        self._at_end = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Read at most as many bytes as the buffer holds."""
        view = memoryview(buffer).cast("B")
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._at_end = not data
        self._num_read += len(data)
        with suppress(OSError):
            self._num_copied += self._target.write(data)
        return len(data)

    def finish(self) -> int | None:
        """Read what is left, if that is little, and return how many bytes were copied; None if it was not all."""
        rest = _REST_BYTES
        while not self._at_end and rest > 0:
            rest -= self.readinto(bytearray(min(rest, 2**16)))
        return self._num_copied if self._at_end and self._num_copied == self._num_read else None
