"""Files from web servers: read through the standard library, within bounds, from any byte on."""

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
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from mobileclip.machine import raise_machine_fault
from mobileclip.storage.addresses import printable, without_secrets
from mobileclip.storage.backend import (
    Backend,
    ByteStream,
    Info,
    Patience,
    RefusedHostError,
    StorageError,
    StoreLimits,
    connect,
    store_limits,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer


# Heads, redirections and what frames the pieces of a body are small.
_SPARE_BYTES = 2**20
_BUFFER_BYTES = 2**16


class Exchange:
    """A request and its answer: the head, for which there is a deadline, then the body, which must keep coming."""

    def __init__(self, limits: StoreLimits) -> None:
        self._seconds = limits.answer_seconds
        self._deadline = time.monotonic() + limits.answer_seconds
        self._patience = Patience(limits.stall_seconds, limits.min_bytes_per_second)
        self._slow = f"less than {limits.min_bytes_per_second:g} bytes a second came for {limits.stall_seconds:g} s"
        self._in_body = False
        self._allowance = _SPARE_BYTES
        self._answers: list[http.client.HTTPResponse] = []

    def answer(self, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        """Return what reads one answer, a redirection or the last one."""
        reader = io.BufferedReader(_Receiver(self, sock), _BUFFER_BYTES)
        readable = SimpleNamespace(makefile=lambda _: reader)  # all that an answer asks of a socket
        self._answers.append(http.client.HTTPResponse(cast("socket.socket", readable), **options))
        return self._answers[-1]

    def close(self) -> None:
        """Close every answer: urllib leaves a redirection open that it cannot read or follow."""
        for answer in self._answers:
            answer.close()

    def begin_body(self) -> None:
        """Take note that the head is there; who reads the body closes it."""
        self._in_body = True
        self._answers.clear()

    def allow(self, num_bytes: int) -> None:
        """Let so many bytes of the body come, and what frames them."""
        self._allowance = num_bytes + _SPARE_BYTES

    def seconds_left(self) -> float:
        """Return how long may be waited now.

        Raises:
            TimeoutError: if that is over.
        """
        left = self._patience.left if self._in_body else self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(self._slow if self._in_body else f"no whole answer came within {self._seconds:g} s")
        return left

    def receive(self, stream: socket.SocketIO, sock: socket.socket, buffer: Buffer) -> int:
        """Read what comes next."""
        sock.settimeout(max(self.seconds_left(), 1e-3))
        started = time.monotonic()
        try:
            num_bytes = stream.readinto(buffer) or 0
        except TimeoutError:
            self._patience.spend(time.monotonic() - started, 0)
            self.seconds_left()
            raise
        self._patience.spend(time.monotonic() - started, num_bytes)
        self._allowance -= num_bytes
        if self._allowance < 0:
            raise http.client.HTTPException("the answer has no end of headers, redirections or frames")
        return num_bytes

    def opener(self) -> urllib.request.OpenerDirector:
        """Return what makes this request and follows redirections to web servers only: by default, they may be ftp."""
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _Handler(self),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        return opener


class _Handler(urllib.request.HTTPHandler):
    https_request = urllib.request.HTTPHandler.http_request

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._opened(http.client.HTTPConnection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._opened(partial(http.client.HTTPSConnection, context=_certificates()), req)

    def _opened(self, kind: Any, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(cast("Any", partial(_connection, kind, self._exchange)), req)


@cache
def _certificates() -> ssl.SSLContext:
    """Return whom is trusted; reading that takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _connection(kind: Any, exchange: Exchange, host: str, *, timeout: object) -> http.client.HTTPConnection:
    del timeout  # that of the exchange counts
    connection: http.client.HTTPConnection = kind(host, timeout=exchange.seconds_left())
    connection.response_class = cast("Any", exchange.answer)
    if not urllib.request.getproxies():
        connection._create_connection = connect  # type: ignore[attr-defined]  # noqa: SLF001 - its only hook
    return connection


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
# What a URL may hold; everything else is percent-encoded, as browsers do.
_SAFE = "%/:=&?~#+!$,;'@()*[]"
_PASSING = (408, 425, 429)
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


class WebBackend(Backend):
    """`http:` and `https:` URLs, which can only be read."""

    def check(self, address: str, *, write: bool = False) -> None:
        """Refuse to write, and a user or a password in the URL; reading needs no package."""
        _refuse_user(address)
        if write:
            raise ValueError(f"{address} can only be read; write to a path, or to a URL such as s3://bucket/key")

    def open(self, address: str, position: int) -> tuple[ByteStream, str]:
        """Return the answer from `position` on, and what stays the same for parts and the whole of a file."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        try:
            body = _request(address, "GET", headers)
        except _PastTheEndError:
            size = self.info(address).size
            if size is not None and position < size:
                raise OSError(
                    f"{_named(address)}: the server refuses what lies behind byte {position} of {size}"
                ) from None
            return io.BytesIO(), ""
        response = body.response
        try:
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                return body, _version(response, _whole_size(address, response, position))
            body.discard(position)
        except OSError:
            body.close()
            raise
        return body, _version(response, _length(response))

    def info(self, address: str) -> Info:
        """Return size and version, as the server's headers tell."""
        try:
            body = _request(address, "HEAD", {})
        except OSError as error:
            if isinstance(error, (FileNotFoundError, StorageError)):
                raise
            # Some servers answer to GET only.
            body = _request(address, "GET", {})
        with body:
            headers, length = body.response.headers, _length(body.response)
            version = headers.get("ETag") or headers.get("Last-Modified") or ""
            return Info(size=length, version=printable(version), etag=printable(headers.get("ETag", "")))

    def is_directory(self, address: str) -> bool:  # noqa: ARG002 - there are none
        """Return False: web servers have no folders that could be listed."""
        return False

    def find(self, address: str, *, recursive: bool) -> dict[str, Info]:  # noqa: ARG002 - nothing can be listed
        """Refuse: web servers list nothing."""
        raise ValueError(f"{address} cannot be listed; name the files, a brace pattern such as {{000..127}} will do")


class _PastTheEndError(OSError):
    """The file ends before the byte that was asked for."""


class _Body(io.RawIOBase):
    """An answer that tells a broken connection from the end: http.client does not."""

    def __init__(self, address: str, response: http.client.HTTPResponse, exchange: Exchange) -> None:
        super().__init__()
        self.response = response
        self._address = _named(address)
        self._exchange = exchange
        self._remaining = _length(response)

    def read(self, size: int = -1, /) -> bytes:
        """Return what is there of at most `size` bytes, none at the end."""
        size = 2**20 if size < 0 else size
        self._exchange.allow(size)
        try:
            data = self.response.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise_machine_fault(error)
            raise StorageError(f"{self._address}: {_words(error)}") from error
        if self._remaining is not None:
            self._remaining -= len(data)
            if size != 0 and len(data) == 0 and self._remaining > 0:
                raise StorageError(f"{self._address}: the connection closed {self._remaining} bytes before the end")
        return data

    def discard(self, num_bytes: int) -> None:
        """Read so many bytes for nothing, where the server cannot begin later."""
        while num_bytes and (data := self.read(min(num_bytes, 2**20))):
            num_bytes -= len(data)

    def close(self) -> None:
        """Close the connection."""
        self.response.close()
        super().close()


def _refuse_user(address: str) -> None:
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ValueError(
            f"{_named(address)} is given with a user or a password, which are not sent; give a URL without them, "
            "such as a signed one"
        )


def _request(address: str, method: str, headers: dict[str, str]) -> _Body:
    _refuse_user(address)
    headers = {"User-Agent": "mobileclip", "Accept-Encoding": "identity", **headers}
    exchange = Exchange(store_limits())
    try:
        request = urllib.request.Request(urllib.parse.quote(address, safe=_SAFE), headers=headers, method=method)  # noqa: S310 - only WebBackend's URLs come here
        response = exchange.opener().open(request)
    except urllib.error.HTTPError as error:
        error.close()
        _refuse(address, error.code, error.reason)
    except (ValueError, http.client.InvalidURL) as error:
        exchange.close()
        raise OSError(f"{_named(address)} is not a web address: {printable(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise_machine_fault(error)
        exchange.close()
        if isinstance(error, urllib.error.URLError) and isinstance(error.reason, RefusedHostError):
            raise error.reason from None
        raise StorageError(f"{_named(address)} cannot be reached: {_words(error)}") from error
    assert isinstance(response, http.client.HTTPResponse), "only web servers are asked"
    exchange.begin_body()
    try:
        _check(address, response, is_part="Range" in headers)
    except OSError:
        response.close()
        raise
    return _Body(address, response, exchange)


def _check(address: str, response: http.client.HTTPResponse, *, is_part: bool) -> None:
    """Refuse an answer that is not the file, or the part of it, that was asked for."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT and not is_part:
        _whole_size(address, response, 0)
    elif response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
        raise OSError(f"{_named(address)}: the server answers {response.status} and no file")
    name = urllib.parse.urlsplit(address).path.lower()
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity") and not name.endswith(_PACKED):
        raise OSError(
            f"{_named(address)} comes compressed ({printable(encoding, limit=40)}) though that was not asked for, and "
            "parts of it cannot be read; have the server send it as it is"
        )
    if response.headers.get_content_type() == "text/html" and not name.endswith((".html", ".htm")):
        raise OSError(
            f"{_named(address)}: the server answers with a web page and not with the file; open it to see why"
        )


def _whole_size(address: str, response: http.client.HTTPResponse, position: int) -> int | None:
    """Return the size of the file that a part is of, where it says so; the part must be all from `position` on."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    first, last, size = (-1, -1, "*") if found is None else (int(found[1]), int(found[2]), found[3])
    length = _length(response)
    if first != position or (size != "*" and last != int(size) - 1) or length not in (None, last - first + 1):
        raise OSError(f"{_named(address)}: the server answers with another part of the file than it was asked for")
    return None if size == "*" else int(size)


def _refuse(address: str, status: int, reason: str) -> NoReturn:
    what = f"{_named(address)}: the server answers {status} {printable(reason, limit=100)}"
    if status in (404, 410):
        raise FileNotFoundError(what)
    if status in (401, 403):
        raise PermissionError(what)
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _PastTheEndError(what)
    if status >= 500 or status in _PASSING:
        raise StorageError(what)
    raise OSError(what)


def _named(address: str) -> str:
    return printable(without_secrets(address))


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
    return printable(text, limit=100)


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "").strip()
    return int(length) if _LENGTH.fullmatch(length) else None


def _version(response: http.client.HTTPResponse, size: int | None) -> str:
    """Return what stays the same for parts and the whole of a file; empty where the server says nothing of it."""
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return mark or ("" if size is None else str(size))
