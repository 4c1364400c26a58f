"""A web server with faults at will, and stores as fixtures; `tests.object_store` is an S3 server."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs
import pytest

from mobileclip import storage
from tests.object_store import ObjectStore, object_store


@attrs.define
class Web:
    """A web server.

    Args:
        url: its address.
        files: path to content.
        ranges: whether it can begin in the middle of a file.
        sized: whether it says with a part how large the whole is.
        head: whether it answers to HEAD.
        cut_after: the bytes after which the connection breaks, for the next answers.
        status: the codes that a path answers with before it answers with its content.
        requests: method, path and range of what it was asked for.
    """

    url: str
    files: dict[str, bytes] = attrs.field(factory=dict)
    ranges: bool = True
    sized: bool = True
    head: bool = True
    cut_after: list[int] = attrs.field(factory=list)
    status: dict[str, list[int]] = attrs.field(factory=dict)
    requests: list[tuple[str, str, str | None]] = attrs.field(factory=list)

    @property
    def methods(self) -> Counter[str]:
        return Counter(method for method, _, _ in self.requests)


class _Handler(http.server.BaseHTTPRequestHandler):
    web: Web

    def do_HEAD(self) -> None:
        if self.web.head:
            self._headers()
        else:
            self.send_error(405)

    def do_GET(self) -> None:
        body = self._headers()
        cut = self.web.cut_after.pop(0) if body and self.web.cut_after else None
        with suppress(ConnectionError):  # who asked may be gone
            self.wfile.write(body[:cut])

    def _headers(self) -> bytes:
        """Send the headers and return what follows them after GET."""
        web, path, asked = self.web, self.path, self.headers.get("Range")
        web.requests.append((self.command, path, asked))
        data, headers = web.files.get(path, b""), {}
        asked = asked if web.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if web.status.get(path):
            status, data, start = web.status[path].pop(0), b"", 0
            headers = {"Location": web.files[path].decode()} if status == 302 else {}
        elif path not in web.files or (start > 0 and start >= len(data)):
            self.send_error(416 if path in web.files else 404)
            return b""
        else:
            status = 206 if asked else 200
            size = len(data) if web.sized else "*"
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{size}"} if asked else {}
            headers |= {"Content-Length": str(len(data) - start), "ETag": f'"{hash(data)}"'}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return data[start:]

    def log_message(self, *arguments: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # with the default of 5, a client of many connections waits and tries again


@contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[None]:
    """Answer requests in a thread of its own for as long as the context lasts."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def web_server() -> Iterator[Web]:
    """Yield a server on this machine."""
    server = _Server(("127.0.0.1", 0), _Handler)
    web = Web(url=f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"web": web})
    with serving(server):
        yield web


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    """Stores that fail at once, where this is imported."""
    with storage.use_limits(storage.StoreLimits(retry_delays_seconds=(0.0, 0.0, 0.0))):
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store(buckets={"data"}) as server:
        yield server


@pytest.fixture(scope="module")
def one_store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture
def store(one_store: ObjectStore) -> ObjectStore:
    """An empty store with whatever buckets are asked for; its server and the client's are those of the whole file."""
    for kept in (one_store.objects, one_store.uploads, one_store.requests):
        kept.clear()
    return one_store


@pytest.fixture
def site() -> Iterator[Web]:
    with web_server() as server:
        yield server
