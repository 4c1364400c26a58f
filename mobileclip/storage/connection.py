"""Connections to web servers, each of which is bounded in time, rate and bytes, whatever a server sends.

Python's own timeout is that of a single call to the system: a server that sends a byte now and then is waited for
without end, and one that sends lines without end is read without end.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
import urllib.request
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from mobileclip.storage.allowed_hosts import connect
from mobileclip.storage.limits import Patience, StoreLimits

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
