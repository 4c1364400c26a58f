"""An S3 server in memory: it counts what it is asked for."""

from __future__ import annotations

import hashlib
import html
import http.server
import io
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4
from xml.sax.saxutils import escape

import attrs


@attrs.define(kw_only=True, eq=False)
class ObjectStore:
    """A store.

    Args:
        buckets: that there are; None for any number.
        objects: content by bucket and key, such as `data/folder/0.tar`.
        requests: how many there were, by method; `LIST` are those that list.
        uploads: parts of objects that are not finished, by their number.
        stop: ends it, and breaks every connection.
    """

    buckets: Collection[str] | None = None
    objects: dict[str, bytes] = attrs.field(factory=dict)
    requests: Counter[str] = attrs.field(factory=Counter)
    uploads: dict[str, dict[int, bytes]] = attrs.field(factory=dict)
    stop: Callable[[], None] = attrs.field(default=lambda: None)
    lock: threading.RLock = attrs.field(factory=threading.RLock)

    def listed(self, bucket: str, prefix: str, delimiter: str) -> str:
        """Return a listing as S3 words it, on one page."""
        start, entries, folders = f"{bucket}/{prefix}", [], {}
        for name in sorted(name for name in self.objects if name.startswith(start)):
            rest = name.removeprefix(start)
            if delimiter and delimiter in rest:
                folders[escape(prefix + rest.partition(delimiter)[0] + delimiter)] = None
                continue
            entries.append(
                f"<Contents><Key>{escape(name.partition('/')[2])}</Key>"
                f"<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{_etag(self.objects[name])}</ETag><Size>{len(self.objects[name])}</Size></Contents>"
            )
        common = (f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
        count = f"<IsTruncated>false</IsTruncated><KeyCount>{len(entries)}</KeyCount>"
        return f'<?xml version="1.0"?><ListBucketResult>{count}{"".join([*entries, *common])}</ListBucketResult>'


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    connections: list[socket.socket]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note a connection."""
        self.connections.append(request)
        super().process_request(request, client_address)

    def stop(self) -> None:
        """Answer nobody any more."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):  # one that is closed already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *arguments: object) -> None:
        """Say nothing of connections whose other end is gone."""


class _Handler(http.server.BaseHTTPRequestHandler):
    store: ObjectStore
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        """Answer with what the method returns: a status, the content, its headers."""
        address = urlsplit(self.path)
        name = unquote(address.path).strip("/")
        bucket, _, key = name.partition("/")
        query = {key: values[0] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
        content = self._body()
        if content is None:  # who sent it died in the middle of it, and it is no object
            self.close_connection = True
            return
        store, method = self.store, self.command if key or self.command != "GET" else "LIST"
        with store.lock:
            store.requests[method] += 1
            if store.buckets is not None and bucket not in store.buckets:
                missing = b"<Error><Code>NoSuchBucket</Code><Message>There is no such bucket</Message></Error>"
                self._send(404, missing)
            else:
                self._send(*getattr(self, f"_{method.lower()}")(name, query, content))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - the server's own naming

    def _list(self, bucket: str, query: Mapping[str, str], _: bytes) -> tuple[Any, ...]:
        return 200, self.store.listed(bucket, query.get("prefix", ""), query.get("delimiter", "")).encode()

    def _get(self, name: str, *_: object) -> tuple[Any, ...]:
        content = self.store.objects.get(name)
        if content is None:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        if (asked := self.headers.get("Range")) is None:
            return 200, content, _marks(content)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        part = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return 206, content[start : end + 1], _marks(content) | part

    def _head(self, name: str, *_: object) -> tuple[Any, ...]:
        if "/" not in name:
            return 200, b""
        content = self.store.objects.get(name)
        return (404, b"") if content is None else (200, content, _marks(content))

    def _put(self, name: str, query: Mapping[str, str], content: bytes) -> tuple[Any, ...]:
        """Take an object, a part of one, or a copy."""
        if "uploadId" in query:
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = content
            return 200, b"", _marks(content)
        if (source := self.headers.get("x-amz-copy-source")) is not None:
            content = self.store.objects[name] = self.store.objects[unquote(source).strip("/")]
            return 200, f"<CopyObjectResult><ETag>{_etag(content)}</ETag></CopyObjectResult>".encode()
        self.store.objects[name] = content
        return 200, b"", _marks(content)

    def _delete(self, name: str, query: Mapping[str, str], _: bytes) -> tuple[Any, ...]:
        """Remove an object, or the parts of one that was not finished."""
        if "uploadId" in query:
            self.store.uploads.pop(query["uploadId"], None)
        else:
            self.store.objects.pop(name, None)
        return 204, b""

    def _post(self, name: str, query: Mapping[str, str], body: bytes) -> tuple[Any, ...]:
        """Begin an object of parts, or finish it; or remove many objects."""
        if "uploads" in query:
            upload = uuid4().hex
            self.store.uploads[upload] = {}
            kind, answer = "InitiateMultipartUpload", f"<UploadId>{upload}</UploadId>"
        elif "uploadId" in query:
            parts = self.store.uploads.pop(query["uploadId"])
            content = self.store.objects[name] = b"".join(parts[number] for number in sorted(parts))
            kind, answer = "CompleteMultipartUpload", f"<ETag>{_etag(content)}</ETag>"
        else:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.store.objects.pop(f"{name}/{html.unescape(key)}", None)
            kind, answer = "Delete", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return 200, f"<{kind}Result>{answer}</{kind}Result>".encode()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _chunk(self, stream: Any) -> bytes:
        """Return the next chunk of a body, empty after the last one."""
        size = int(stream.readline().split(b";")[0] or b"0", 16)
        chunk: bytes = stream.read(size)
        if size:
            stream.readline()
        return chunk

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(iter(lambda: self._chunk(self.rfile), b""))
            while self.rfile.readline().strip():
                pass
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                return None
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        stream = io.BytesIO(body)
        return b"".join(iter(lambda: self._chunk(stream), b""))

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # who asked may be gone
                self.wfile.write(content)


@lru_cache(maxsize=1024)
def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _marks(content: bytes) -> dict[str, str]:
    return {"ETag": _etag(content), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


@contextmanager
def object_store(*, buckets: Collection[str] | None = None) -> Iterator[ObjectStore]:
    """Yield a store on this machine that `s3://` addresses of this process, and of those it starts, lead to.

    Args:
        buckets: that there are; None for any number.
    """
    import s3fs

    store = ObjectStore(buckets=buckets)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.connections, store.stop = [], server.stop
    environment = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    address = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # An instance keeps the endpoint that it was made with.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with mock.patch.dict(os.environ, environment | address):
            yield store
    finally:
        server.stop()
        thread.join()
        s3fs.S3FileSystem.clear_instance_cache()
