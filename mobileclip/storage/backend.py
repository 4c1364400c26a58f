"""Defines the interface and limits of remote stores, and a stream that reconnects after a broken connection."""

from __future__ import annotations

import gzip
import io
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs
from attrs import validators

from mobileclip.machine import raise_machine_fault
from mobileclip.storage.urls import printable, without_secrets
from mobileclip.strict import strict

if TYPE_CHECKING:
    from typing_extensions import Buffer


@attrs.frozen(kw_only=True, field_transformer=strict)
class StoreLimits:
    """Timeouts, retry pauses and minimum data rates of remote stores.

    Args:
        answer_seconds: timeout for the response header of a web server, including connection and redirects.
        stall_seconds: maximum time below `min_bytes_per_second`; after this time, a connection counts as broken.
        min_bytes_per_second: minimum data rate of a connection.
        recovery_seconds: maximum time below `min_bytes_per_second`, including retries and pauses; after this time,
            reading a file fails.
        call_seconds: timeout for one fsspec call, such as reading a block.
        retry_delays_seconds: pause before each retry, also if a store refuses a call because of too many requests.
        max_bytes: maximum size of a file, in bytes.
    """

    answer_seconds: float = attrs.field(default=60.0, validator=validators.gt(0))
    stall_seconds: float = attrs.field(default=30.0, validator=validators.gt(0))
    min_bytes_per_second: float = attrs.field(default=1000.0, validator=validators.gt(0))
    recovery_seconds: float = attrs.field(default=600.0, validator=validators.gt(0))
    call_seconds: float = attrs.field(default=600.0, validator=validators.gt(0))
    retry_delays_seconds: tuple[float, ...] = attrs.field(
        default=(0.5, 2.0, 8.0), validator=validators.deep_iterable(validators.ge(0))
    )
    max_bytes: int = attrs.field(default=2**40, validator=validators.gt(0))

    @property
    def num_attempts(self) -> int:
        """Number of attempts before a call to a store fails."""
        return len(self.retry_delays_seconds) + 1


_in_use = StoreLimits()


def store_limits() -> StoreLimits:
    """Return the current limits of remote stores."""
    return _in_use


@contextmanager
def use_limits(limits: StoreLimits) -> Iterator[None]:
    """Use the given limits in all threads of this process during the block; streams already open keep their limits."""
    global _in_use  # noqa: PLW0603 - one setting for all callers
    before, _in_use = _in_use, limits
    try:
        yield
    finally:
        _in_use = before


class StallTimeout:
    """A time budget for a slow sender: waiting consumes the budget, and received bytes restore the budget.

    Args:
        seconds: maximum budget, and budget at the start.
        bytes_per_second: data rate at which the budget stays constant.
    """

    def __init__(self, seconds: float, bytes_per_second: float) -> None:
        self._most = self.left = seconds
        self._rate = bytes_per_second

    def spend(self, seconds: float, num_bytes: int) -> None:
        """Subtract the elapsed time from the budget, and add time for the received bytes."""
        self.left = min(self._most, self.left - seconds + num_bytes / self._rate)


_trusted: ContextVar[tuple[str, ...] | None] = ContextVar("trusted", default=None)


class RefusedHostError(PermissionError):
    """Raised if an untrusted URL names a forbidden host."""


@contextmanager
def public_hosts_only(trusted: Sequence[str] = ()) -> Iterator[None]:
    """Restrict connections in this block, including redirects, to hosts with public internet addresses.

    Without this restriction, an untrusted list of URLs could read private data from cloud metadata services or local
    machines. A configured proxy can still reach any host.

    Args:
        trusted: names of additional allowed hosts, such as `127.0.0.1` or `images.example`.
    """
    token = _trusted.set(tuple(host.lower() for host in trusted))
    try:
        yield
    finally:
        _trusted.reset(token)


def connect(
    address: tuple[str, int], timeout: float | None, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Connect to a host as `socket.create_connection` does, but only if `public_hosts_only` allows the host.

    Raises:
        RefusedHostError: if the host has a non-public address and is not trusted.
        OSError: if the host cannot be reached.
    """
    host, port = address
    trusted = _trusted.get()
    if trusted is None or host.lower() in trusted:
        return socket.create_connection(address, timeout, source_address)
    places = [str(place[0]) for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    private = next((ip for ip in places if not _is_public(ipaddress.ip_address(ip))), None)
    if private is not None:
        raise RefusedHostError(
            f"{host} resolves to {private}, which is not a public address; if you trust the host, add the host "
            "to `hosts` of the source (--hosts)"
        )
    # Connect to the checked addresses: a second look-up could return other addresses.
    for ip in places[:-1]:
        with suppress(OSError):
            return socket.create_connection((ip, port), timeout, source_address)
    return socket.create_connection((places[-1], port), timeout, source_address)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


T = TypeVar("T")


class StorageError(OSError):
    """Raised if a store is unreachable or fails; the same call may succeed later."""


# A retry does not help if a file is missing, forbidden or damaged.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, gzip.BadGzipFile)


def is_transient(error: Exception) -> bool:
    """Return whether the error may be temporary (an unavailable store, network or disk, or too little memory).

    False means that a file is damaged, missing or forbidden.

    Args:
        error: exception from reading or writing a file.
    """
    if isinstance(error, (StorageError, MemoryError)):
        return True
    if not isinstance(error, OSError) or isinstance(error, _LASTING):
        return False
    # System errors have a number. A plain OSError without a number comes from a library that cannot parse the file.
    return error.errno is not None or type(error) is not OSError


@attrs.frozen(kw_only=True)
class Info:
    """Size, version and ETag of a file in a store.

    Args:
        size: size in bytes; None if the server does not state the size.
        version: string that changes with the content, as far as the store knows; for some stores, only a modification
            time.
        etag: checksum or similar identifier of the content, from the store; empty without an identifier.
    """

    size: int | None
    version: str
    etag: str = ""

    @property
    def fingerprint(self) -> str:
        """Short string that changes with the file, as far as the store knows."""
        return f"{self.size}-{self.version}"


class Backend(Protocol):
    """Interface of a remote store. Transient failures raise `StorageError`; other failures raise a different `OSError`.

    Only writable stores implement `upload`, `rename` and `remove`.
    """

    def check(self, address: str, *, write: bool = False) -> None:
        """Check, without connecting, that this machine can read or write URLs with the scheme of `address`."""

    def open(self, address: str, position: int) -> tuple[Any, str]:
        """Return a stream (with `seekable`, `seek` and `close`) from byte `position`, and the version of the file."""

    def read(self, address: str, stream: Any, size: int) -> bytes:  # noqa: ARG002 - for stores that need it
        """Return at most `size` bytes of an open stream; return no bytes at the end."""
        data: bytes = stream.read(size)
        return data

    def info(self, address: str) -> Info:
        """Return size, version and ETag of a file."""

    def is_directory(self, address: str) -> bool:  # noqa: ARG002 - as above
        """Return whether files exist below the URL."""
        return False

    def find(self, address: str, *, recursive: bool) -> dict[str, Info]:  # noqa: ARG002 - as above
        """Return the files below the URL by relative path."""
        raise ValueError(
            f"{address} cannot be listed; give the URL of each file, or a brace pattern such as {{000..127}}"
        )

    def upload(self, source: str, address: str) -> None:  # noqa: ARG002 - as above
        """Upload a local file atomically."""
        raise ValueError(f"{address} can only be read")

    def rename(self, source: str, target: str) -> None:  # noqa: ARG002 - as above
        """Move a file within the store."""
        raise ValueError(f"{source} can only be read")

    def remove(self, address: str) -> None:
        """Remove a file."""
        raise ValueError(f"{address} can only be read")


def retried(call: Callable[[], T], num_attempts: int | None = None) -> T:
    """Call a function, and retry after a pause if the function raises `StorageError`.

    Args:
        call: function without arguments.
        num_attempts: maximum number of calls; None for `StoreLimits.num_attempts`, which is also the upper limit.
    """
    delays = store_limits().retry_delays_seconds
    for delay in delays if num_attempts is None else delays[: num_attempts - 1]:
        try:
            return call()
        except StorageError:  # noqa: PERF203 - a handful of attempts, each with a pause
            time.sleep(delay)
    return call()


class RemoteStream(io.RawIOBase):
    """A readable file of a remote store; after a broken connection, reading continues at the same byte.

    Args:
        backend: backend that opens the URL.
        address: URL of the file.
        num_attempts: maximum number of attempts per connection; None for `StoreLimits.num_attempts`.

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
        self._stall_timeout = StallTimeout(self._limits.recovery_seconds, self._limits.min_bytes_per_second)
        self._position = 0
        self._stream: Any = None
        self._version = ""
        retried(self._connect, num_attempts)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; if the store's stream cannot seek, the next read reconnects."""
        start: int | None = self._position if whence == io.SEEK_CUR else 0
        if whence == io.SEEK_END:
            start = retried(lambda: self._backend.info(self._address), self._num_attempts).size
        if start is None:
            raise io.UnsupportedOperation(f"the size of {self._name} is unknown")
        position = max(0, start + offset)
        if position != self._position:
            self._position = position
            if self._stream is not None and self._stream.seekable():
                self._stream.seek(position)
            else:
                self._disconnect()
        return position

    def readinto(self, buffer: Buffer) -> int:
        """Read into the buffer and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        started = time.monotonic()
        data = retried(lambda: self._read(len(view)), self._num_attempts)
        self._stall_timeout.spend(time.monotonic() - started, len(data))
        if self._stall_timeout.left < 0:
            raise StorageError(
                f"{self._name} is too slow: {self._limits.recovery_seconds:g} s below "
                f"{self._limits.min_bytes_per_second:g} bytes per second"
            )
        if self._position + len(data) > self._limits.max_bytes:
            raise OSError(
                f"{self._name} has more than {self._limits.max_bytes} bytes, the limit of `StoreLimits.max_bytes`"
            )
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._disconnect()
        super().close()

    def _connect(self) -> None:
        if self._stream is None:
            self._stream, version = self._backend.open(self._address, self._position)
            if self._version and version and version != self._version:
                self._disconnect()
                raise OSError(f"{self._name} changed while it was read")
            self._version = version or self._version

    def _read(self, num_bytes: int) -> bytes:
        self._connect()
        try:
            return self._backend.read(self._address, self._stream, num_bytes)
        except Exception as error:
            raise_machine_fault(error)
            self._disconnect()
            # Stores raise many kinds of errors while reading a file; reconnecting shows the cause.
            raise StorageError(f"{self._name} was interrupted at byte {self._position}: {error}") from error

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
