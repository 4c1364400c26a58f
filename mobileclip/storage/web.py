"""Reads files from web servers with the standard library, within limits and from any byte position."""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from mobileclip.machine import raise_machine_fault
from mobileclip.storage.backend import (
    Backend,
    Info,
    RefusedHostError,
    StallTimeout,
    StorageError,
    StoreLimits,
    connect,
    store_limits,
)
from mobileclip.storage.urls import printable, without_secrets

if TYPE_CHECKING:
    from typing_extensions import Buffer


# Allowance for headers, redirects and framing bytes of a response body, which are small.
_SPARE_BYTES = 2**20
_BUFFER_BYTES = 2**16


class Exchange:
    """One HTTP request, with a deadline for the response header and a minimum data rate for the body."""

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.answer_seconds
        self._stall_timeout: StallTimeout | None = None
        self._allowance = _SPARE_BYTES
        self._responses: list[http.client.HTTPResponse] = []

    def response(self, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        """Return the response read from a socket: a redirect or the final response."""
        reader = io.BufferedReader(_Receiver(self, sock), _BUFFER_BYTES)
        readable = SimpleNamespace(makefile=lambda _: reader)  # the only method of a socket that a response uses
        self._responses.append(http.client.HTTPResponse(cast("socket.socket", readable), **options))
        return self._responses[-1]

    def close(self) -> None:
        """Close every response, because urllib does not close malformed redirects."""
        for response in self._responses:
            response.close()

    def begin_body(self) -> None:
        """Switch to the limits of the response body; after this call, the body closes the response."""
        self._stall_timeout = StallTimeout(self._limits.stall_seconds, self._limits.min_bytes_per_second)
        self._responses.clear()

    def allow(self, num_bytes: int) -> None:
        """Allow the next `num_bytes` of the body, plus framing bytes."""
        self._allowance = num_bytes + _SPARE_BYTES

    def seconds_left(self) -> float:
        """Return the remaining time in seconds.

        Raises:
            TimeoutError: if no time is left.
        """
        left = self._deadline - time.monotonic() if self._stall_timeout is None else self._stall_timeout.left
        if left <= 0:
            raise self._late()
        return left

    def receive(self, stream: socket.SocketIO, sock: socket.socket, buffer: Buffer) -> int:
        """Receive the next bytes into a buffer, within the time limits."""
        sock.settimeout(self.seconds_left())
        started = time.monotonic()
        try:
            num_bytes = stream.readinto(buffer) or 0
        except TimeoutError:
            raise self._late() from None
        if self._stall_timeout is not None:
            self._stall_timeout.spend(time.monotonic() - started, num_bytes)
        self._allowance -= num_bytes
        if self._allowance < 0:
            raise http.client.HTTPException("the headers, redirects or framing of the response are too long")
        return num_bytes

    def _late(self) -> TimeoutError:
        limits = self._limits
        if self._stall_timeout is None:
            return TimeoutError(f"no complete response within {limits.answer_seconds:g} s")
        rate = f"{limits.min_bytes_per_second:g} bytes a second"
        return TimeoutError(f"less than {rate} arrived for {limits.stall_seconds:g} s")

    def opener(self) -> urllib.request.OpenerDirector:
        """Return a URL opener that follows redirects only to web servers; by default, urllib also follows ftp URLs."""
        opener = urllib.request.OpenerDirector()
        opener.add_handler(_Handler(self))
        for kind in ("Proxy", "HTTPRedirect", "HTTPDefaultError", "Unknown"):
            opener.add_handler(getattr(urllib.request, f"{kind}Handler")())
        opener.add_handler(urllib.request.HTTPErrorProcessor())
        return opener


class _Handler(urllib.request.HTTPHandler):
    https_request = urllib.request.HTTPHandler.http_request

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(cast("Any", self._connection), req, kind=http.client.HTTPConnection)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection
        return self.do_open(cast("Any", self._connection), req, kind=kind, context=_certificates())

    def _connection(self, host: str, *, kind: Any, timeout: object, **options: Any) -> http.client.HTTPConnection:
        del timeout  # the exchange has its own timeout
        connection: http.client.HTTPConnection = kind(host, timeout=self._exchange.seconds_left(), **options)
        connection.response_class = cast("Any", self._exchange.response)
        if not urllib.request.getproxies():
            connection._create_connection = connect  # type: ignore[attr-defined]  # noqa: SLF001 - the only hook
        return connection


@cache
def _certificates() -> ssl.SSLContext:
    """Return a cached TLS context, because loading the trusted certificates takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Receiver(io.RawIOBase):
    def __init__(self, exchange: Exchange, sock: socket.socket) -> None:
        super().__init__()
        self._exchange, self._sock = exchange, sock
        self._stream = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        return self._exchange.receive(self._stream, self._sock, buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")
# Characters that stay in a URL; all others are percent-encoded, as in browsers.
_SAFE = "%/:=&?~#+!$,;'@()*[]"
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_PIECE_BYTES = 2**20


class _PastTheEndError(OSError):
    """Raised if a file ends before the requested byte."""


# Error class of a status code. Other codes raise StorageError from 500 on, and OSError below 500.
_ERRORS: dict[int, type[OSError]] = {
    **dict.fromkeys((404, 410), FileNotFoundError),
    **dict.fromkeys((401, 403), PermissionError),
    **dict.fromkeys((408, 425, 429), StorageError),
    416: _PastTheEndError,
}


class WebBackend(Backend):
    """Backend for `http:` and `https:` URLs, which are read-only."""

    def check(self, address: str, *, write: bool = False) -> None:
        """Raise a ValueError if the URL contains a user or password, or `write` is True."""
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise ValueError(
                f"{_named(address)} contains a user or password, which requests do not send; use a URL "
                "without credentials, such as a signed URL"
            )
        if write:
            raise ValueError(f"{address} can only be read; write to a path, or to a URL such as s3://bucket/key")

    def open(self, address: str, position: int) -> tuple[io.RawIOBase | io.BytesIO, str]:
        """Return a stream of the file from byte `position`, and the version of the file."""
        try:
            body = self._request(address, position=position)
        except _PastTheEndError:
            size = self.info(address).size
            if size is not None and position < size:
                raise OSError(
                    f"{_named(address)}: the server refuses to send bytes from {position} on, although "
                    f"the file has {size} bytes"
                ) from None
            return io.BytesIO(), ""
        return body, body.version

    def info(self, address: str) -> Info:
        """Return the size, version and ETag of a file from the response headers."""
        try:
            body = self._request(address, "HEAD")
        except (FileNotFoundError, StorageError):
            raise
        except OSError:
            body = self._request(address)  # some servers only answer GET requests
        with body:
            return Info(size=body.size, version=body.version, etag=body.etag)

    def _request(self, address: str, method: str = "GET", *, position: int = 0) -> _Body:
        self.check(address)
        headers = {"User-Agent": "mobileclip", "Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
        exchange = Exchange(store_limits())
        try:
            request = urllib.request.Request(urllib.parse.quote(address, safe=_SAFE), headers=headers, method=method)  # noqa: S310 - the URL is http or https
            response = exchange.opener().open(request)
        except urllib.error.HTTPError as error:
            error.close()
            kind = _ERRORS.get(error.code, StorageError if error.code >= 500 else OSError)
            reason = printable(error.reason, limit=100)
            raise kind(f"{_named(address)}: the server answers {error.code} {reason}") from None
        except (ValueError, http.client.InvalidURL) as error:
            exchange.close()
            raise OSError(f"{_named(address)} is not a web address: {printable(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            raise_machine_fault(error)
            exchange.close()
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, RefusedHostError):
                raise error.reason from None
            raise StorageError(f"{_named(address)} cannot be reached: {_words(error)}") from error
        exchange.begin_body()
        return _Body(address, response, exchange, position)


class _Body(io.RawIOBase):
    """The body of a response, which, unlike http.client, distinguishes a broken connection from the end of the file.

    Args:
        address: URL of the file.
        response: response of the server.
        exchange: request that received the response.
        position: offset of the first byte to return; the body skips earlier bytes if the server sends the whole file.
    """

    def __init__(self, address: str, response: http.client.HTTPResponse, exchange: Exchange, position: int) -> None:
        super().__init__()
        self._response, self._exchange, self._name = response, exchange, _named(address)
        length = response.headers.get("Content-Length", "").strip()
        self.size = self._remaining = int(length) if _LENGTH.fullmatch(length) else None
        self.etag = printable(response.headers.get("ETag", ""))
        try:
            self._check(urllib.parse.urlsplit(address).path.lower(), position)
            before = 0 if response.status == http.HTTPStatus.PARTIAL_CONTENT else position
            while before and (data := self.read(min(before, _PIECE_BYTES))):
                before -= len(data)
        except OSError:
            self.close()
            raise
        changed = printable(response.headers.get("Last-Modified", ""))
        self.version = self.etag or changed or ("" if self.size is None else str(self.size))

    def _check(self, name: str, position: int) -> None:
        """Raise an OSError if the response is not the file from `position` to the end."""
        headers, status = self._response.headers, self._response.status
        if status == http.HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            first, last, size = (-1, -1, "*") if found is None else (int(found[1]), int(found[2]), found[3])
            is_to_the_end = size in ("*", str(last + 1))
            if first != position or not is_to_the_end or self._remaining not in (None, last - first + 1):
                raise OSError(f"{self._name}: the server answers with a different part of the file than requested")
            self.size = None if size == "*" else last + 1
        elif status != http.HTTPStatus.OK:
            raise OSError(f"{self._name}: the server answers with status {status} instead of the file")
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity") and not name.endswith(_PACKED):
            raise OSError(
                f"{self._name} arrives compressed ({printable(encoding, limit=40)}), although mobileclip requested an "
                "uncompressed file; configure the server to send the file uncompressed"
            )
        if headers.get_content_type() == "text/html" and not name.endswith((".html", ".htm")):
            raise OSError(
                f"{self._name}: the server answers with a web page instead of the file; open the URL in a browser"
            )

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes as soon as bytes are available; return no bytes at the end."""
        size = _PIECE_BYTES if size < 0 else size
        self._exchange.allow(size)
        try:
            data = self._response.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise_machine_fault(error)
            raise StorageError(f"{self._name}: {_words(error)}") from error
        if self._remaining is not None:
            self._remaining -= len(data)
            if size != 0 and len(data) == 0 and self._remaining > 0:
                raise StorageError(f"{self._name}: the connection closed {self._remaining} bytes before the end")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        super().close()


def _named(address: str) -> str:
    return printable(without_secrets(address))


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
    return printable(text, limit=100)
