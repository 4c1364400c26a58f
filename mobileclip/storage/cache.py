"""Copies of remote files on this machine, for those that are read again; the oldest make room for the newest."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import attrs
from attrs import validators

from mobileclip.storage.addresses import is_remote
from mobileclip.storage.files import open_read
from mobileclip.strict import strict

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SUFFIX, _UNFINISHED = ".copy", ".part"
# What a reader leaves unread behind the end mark of a file, at most.
_REST_BYTES = 2**20


@attrs.frozen(kw_only=True, field_transformer=strict)
class FileCache:
    """A folder of copies, which several processes may share. A file is copied while it is first read, to its end.

    Remote files are taken not to change: delete the folder where they do.

    Args:
        path: the folder; created.
        max_bytes: of all copies together, 100 GB by default.
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
        copy = self.path / (hashlib.sha256(address.encode()).hexdigest() + _SUFFIX)
        local = _opened(copy)
        if local is None:
            with open_read(address) as stream, self._copying(stream, copy) as both:
                yield both
            return
        with local:
            with suppress(OSError):
                os.utime(copy)
            yield local

    @contextmanager
    def _copying(self, stream: IO[bytes], copy: Path) -> Iterator[IO[bytes]]:
        part = copy.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}{_UNFINISHED}")
        reader = _CopyingReader(stream, part, self.max_bytes)
        try:
            yield io.BufferedReader(reader)
            if reader.finish():
                part.replace(copy)
                self._make_room(copy)
        finally:
            reader.discard()
            with suppress(OSError):
                part.unlink()

    def _make_room(self, newest: Path) -> None:
        """Remove the copies that were not read for longest, until the rest fits."""
        copies = []
        for entry in os.scandir(self.path):
            with suppress(OSError):  # another process was quicker
                if entry.name.endswith(_SUFFIX):
                    status = entry.stat()
                    copies.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.max_bytes or path == str(newest):
                return
            with suppress(OSError):
                Path(path).unlink()
            total -= size


def _opened(path: Path) -> IO[bytes] | None:
    try:
        return path.open("rb")
    except OSError:
        return None


class _CopyingReader(io.RawIOBase):
    """Reads a stream and writes what it reads to a file, until one of the two cannot."""

    def __init__(self, stream: IO[bytes], part: Path, max_bytes: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = max_bytes
        self._at_end = False
        self._file: IO[bytes] | None = None
        with suppress(OSError):
            part.parent.mkdir(parents=True, exist_ok=True)
            self._file = part.open("xb")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Read at most as many bytes as the buffer holds."""
        view = memoryview(buffer).cast("B")
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._at_end = not data
        self._left -= len(data)
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError:
                self.discard()
            if self._left < 0:
                self.discard()
        return len(data)

    def finish(self) -> bool:
        """Read what is left, if that is little, and return whether the file is a whole copy."""
        rest = _REST_BYTES
        while self._file is not None and not self._at_end and rest > 0:
            rest -= self.readinto(bytearray(min(rest, 2**16)))
        if self._file is None or not self._at_end:
            return False
        try:
            self._file.close()
        except OSError:
            return False
        return True

    def discard(self) -> None:
        """Write no more."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
