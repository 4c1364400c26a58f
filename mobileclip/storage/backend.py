"""What a remote store must be able to do, and a stream over it that survives a broken connection."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import attrs

from mobileclip.machine import raise_machine_fault
from mobileclip.storage.limits import Patience, store_limits
from mobileclip.storage.printable import printable, without_secrets

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")


class StorageError(OSError):
    """A store could not be reached, or failed; the same call may succeed later."""


# What is missing, closed to this user, or broken is so the next time as well.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, gzip.BadGzipFile)


def is_transient(error: Exception) -> bool:
    """Return whether the same call may succeed later: a store, a network, a disk or memory was not there for it.

    False means that the content of a file is to blame, that it is missing, or that it is closed to this user.

    Args:
        error: of any kind.
    """
    if isinstance(error, (StorageError, MemoryError)):
        return True
    if not isinstance(error, OSError) or isinstance(error, _LASTING):
        return False
    # The system's errors have a number. A plain one without is a library's, of bytes that it cannot read.
    return error.errno is not None or type(error) is not OSError


@attrs.frozen(kw_only=True)
class Info:
    """Size, version and ETag of a file in a store.

    Args:
        size: bytes; None where the server does not say.
        version: changes when the content does, as far as the store knows: it may be no more than a time.
        etag: what the store says of the content itself, such as a checksum; empty where it says nothing.
    """

    size: int | None
    version: str
    etag: str = ""

    @property
    def fingerprint(self) -> str:
        """A short text that changes when the file is changed, as far as the store knows."""
        return f"{self.size}-{self.version}"


class ByteStream(Protocol):
    """The interface of an open file in a store."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""

    def seekable(self) -> bool:
        """Return whether `seek` works."""

    def seek(self, offset: int, /) -> int:
        """Move to a byte."""

    def close(self) -> None:
        """Close the connection."""


class Backend(Protocol):
    """A remote store, for reading; every failure that may pass is a StorageError, and every other one another OSError.

    One that can be written to has the last four, too.
    """

    def check(self, address: str, *, write: bool = False) -> None:
        """Make sure that such URLs can be read, or written, here; nothing is connected to."""

    def open(self, address: str, position: int) -> tuple[ByteStream, str]:
        """Return a stream from `position` on, and the version of the file."""

    def info(self, address: str) -> Info:
        """Return what is known about a file."""

    def is_directory(self, address: str) -> bool:
        """Return whether files lie below the URL."""

    def find(self, address: str, *, recursive: bool) -> dict[str, Info]:
        """Return the files below, by their names relative to the URL."""

    def upload(self, source: str, address: str) -> None:  # noqa: ARG002 - of those that can be written to
        """Put a local file there, whole or not at all."""
        raise _only_read(address)

    def write_if(self, address: str, content: bytes, version: str | None) -> bool:  # noqa: ARG002 - as above
        """Write a small file if it is still of a version, or if there is none yet; return whether it was written."""
        raise _only_read(address)

    def rename(self, source: str, target: str) -> None:  # noqa: ARG002 - as above
        """Move a file within the store."""
        raise _only_read(source)

    def remove(self, address: str) -> None:
        """Remove a file."""
        raise _only_read(address)


def _only_read(address: str) -> ValueError:
    return ValueError(f"{address} can only be read")


def retried(call: Callable[[], T], num_attempts: int | None = None) -> T:
    """Return what `call` returns; called again, after a pause, when the store fails.

    Args:
        call: may be called several times.
        num_attempts: fewer than the limits allow.
    """
    delays = store_limits().retry_delays_seconds
    for delay in delays if num_attempts is None else delays[: num_attempts - 1]:
        try:
            return call()
        except StorageError:  # noqa: PERF203 - a handful of attempts, each with a pause
            time.sleep(delay)
    return call()


class RemoteStream(io.RawIOBase):
    """A file of a remote store, for reading; a broken connection is opened again where it broke.

    Args:
        backend: the store.
        address: the file.
        num_attempts: to connect, each time that is needed; None for as many as the limits allow.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, backend: Backend, address: str, num_attempts: int | None = None) -> None:
        super().__init__()
        self._backend = backend
        self._address = address
        self._name = printable(without_secrets(address))
        self._num_attempts = num_attempts
        self._limits = store_limits()
        self._patience = Patience(self._limits.recovery_seconds, self._limits.min_bytes_per_second)
        self._position = 0
        self._stream: ByteStream | None = None
        self._version: str | None = None
        retried(self._connect, num_attempts)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; the connection follows when something is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: None}[whence]
        if start is None:
            start = retried(lambda: self._backend.info(self._address), self._num_attempts).size
            if start is None:
                raise io.UnsupportedOperation(f"the size of {self._name} is not known")
        position = max(0, start + offset)
        if position != self._position:
            self._position = position
            if self._stream is not None and self._stream.seekable():
                self._stream.seek(position)
            else:
                self._disconnect()
        return position

    def readinto(self, buffer: Buffer) -> int:
        """Read at most as many bytes as the buffer holds."""
        view = memoryview(buffer).cast("B")
        started = time.monotonic()
        data = retried(lambda: self._read(len(view)), self._num_attempts)
        self._patience.spend(time.monotonic() - started, len(data))
        if self._patience.left < 0:
            raise StorageError(
                f"{self._name} comes too slowly: it is behind {self._limits.min_bytes_per_second:g} bytes a second by "
                f"{self._limits.recovery_seconds:g} s"
            )
        if self._position + len(data) > self._limits.max_bytes:
            raise OSError(f"{self._name} has more than {self._limits.max_bytes} bytes")
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._disconnect()
        super().close()

    def _connect(self) -> ByteStream:
        if self._stream is None:
            self._stream, version = self._backend.open(self._address, self._position)
            if self._version and version and version != self._version:
                self._disconnect()
                raise OSError(f"{self._name} changed while it was being read")
            self._version = version or self._version
        return self._stream

    def _read(self, num_bytes: int) -> bytes:
        stream = self._connect()
        try:
            return stream.read(num_bytes)
        except Exception as error:
            raise_machine_fault(error)
            self._disconnect()
            # Whatever the store's package raises in the middle of a file, connecting again tells what it means.
            raise StorageError(f"{self._name} broke off at byte {self._position}: {error}") from error

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
