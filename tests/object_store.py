"""An S3 server in memory: it counts what it is asked for, and takes as long over each request as it is told to."""

from __future__ import annotations

import hashlib
import html
import http.server
import os
import re
import socket
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import attrs

_MOST_LISTED = 1000
_MODIFIED = "2026-01-01T00:00:00.000Z"
_MODIFIED_HEADER = "Thu, 01 Jan 2026 00:00:00 GMT"


@attrs.define(kw_only=True, eq=False)
class ObjectStore:
    """A store.

    Args:
        buckets: that there are; None for any number.
        seconds: that each request takes, beside what the machine needs for it.
        objects: content by bucket and key, such as `data/folder/0.tar`.
        requests: how many there were, by method; `LIST` are those that list.
        uploads: parts of objects that are not finished, by their number.
        url: its address.
        stop: ends it, and breaks every connection.
    """

    buckets: Collection[str] | None = None
    seconds: float = 0.0
    objects: dict[str, bytes] = attrs.field(factory=dict)
    requests: Counter[str] = attrs.field(factory=Counter)
    uploads: dict[str, dict[int, bytes]] = attrs.field(factory=dict)
    url: str = ""
    stop: Callable[[], None] = attrs.field(default=lambda: None)
    num_changes: int = 0
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    _names: list[str] = attrs.field(factory=list)
    _state: tuple[int, int, str] = (0, 0, "")

    def put(self, name: str, content: bytes | None) -> None:
        """Keep an object, or remove it."""
        self.num_changes += 1
        if content is None:
            self.objects.pop(name, None)
        else:
            self.objects[name] = content

    def listed(self, bucket: str, query: Mapping[str, str]) -> bytes:
        """Return one page of a listing as S3 words it."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        # Sorting very many names for each page would take longer than all else.
        state = (self.num_changes, len(self.objects), next(reversed(self.objects), ""))
        if state != self._state:
            self._state, self._names = state, sorted(self.objects)
        start = f"{bucket}/{prefix}"
        position = bisect_right(self._names, start) - (start in self.objects)
        if "continuation-token" in query:
            position = bisect_right(self._names, unquote(query["continuation-token"]))
        entries: list[str] = []
        folders: dict[str, None] = {}
        while position < len(self._names) and self._names[position].startswith(start):
            if len(entries) + len(folders) == _MOST_LISTED:
                break
            name = self._names[position]
            rest = name[len(start) :]
            if delimiter and delimiter in rest:
                folder = rest.partition(delimiter)[0] + delimiter
                folders[folder] = None
                position = bisect_right(self._names, f"{start}{folder}\U0010ffff")
                continue
            content = self.objects[name]
            entries.append(
                f"<Contents><Key>{escape(name.partition('/')[2])}</Key><LastModified>{_MODIFIED}</LastModified>"
                f"<ETag>&quot;{_etag(content)}&quot;</ETag><Size>{len(content)}</Size></Contents>"
            )
            position += 1
        more = position < len(self._names) and self._names[position].startswith(start)
        token = f"<NextContinuationToken>{quote(self._names[position - 1])}</NextContinuationToken>" if more else ""
        common = "".join(f"<CommonPrefixes><Prefix>{escape(prefix + one)}</Prefix></CommonPrefixes>" for one in folders)
        return (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}'
            f"<KeyCount>{len(entries)}</KeyCount>{''.join(entries)}{common}</ListBucketResult>"
        ).encode()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection, and note it."""
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

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

    def do_GET(self) -> None:
        """List, or send an object or a part of it."""
        bucket, query = self._begin()
        if self._lacks_bucket():
            return
        if not self._key():
            self._count("LIST")
            with self.store.lock:
                self._send(200, self.store.listed(bucket, query))
            return
        self._count("GET")
        content = self.store.objects.get(self._name())
        if content is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif (asked := self.headers.get("Range")) is None:
            self._send(200, content, etag=_etag(content))
        else:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
            part = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
            self._send(206, content[start : end + 1], etag=_etag(content), headers=part)

    def do_HEAD(self) -> None:
        """Say how large an object is."""
        bucket, _ = self._begin()
        self._count("HEAD")
        content = self.store.objects.get(self._name())
        if not self._key() and self._has(bucket):
            self._send(200, b"")
        elif content is None:
            self._send(404, b"", length=0)
        else:
            self._send(200, b"", etag=_etag(content), length=len(content))

    def do_PUT(self) -> None:
        """Take an object, where the conditions of the request hold, a part of one, or a copy."""
        _, query = self._begin()
        content = self._body()
        if content is None:  # who sent it died in the middle of it, and it is no object
            self.close_connection = True
            return
        self._count("PUT")
        if self._lacks_bucket():
            return
        name, store = self._name(), self.store
        if "uploadId" in query:
            store.uploads[query["uploadId"]][int(query["partNumber"])] = content
            self._send(200, b"", etag=_etag(content))
            return
        if "x-amz-copy-source" in self.headers:
            content = store.objects[unquote(self.headers["x-amz-copy-source"]).strip("/")]
            store.put(name, content)
            self._send(200, f'<CopyObjectResult><ETag>"{_etag(content)}"</ETag></CopyObjectResult>'.encode())
            return
        with store.lock:
            store.put(name, content)
        self._send(200, b"", etag=_etag(content))

    def do_DELETE(self) -> None:
        """Remove an object, or the parts of one that was not finished."""
        _, query = self._begin()
        self._count("DELETE")
        with self.store.lock:
            if "uploadId" in query:
                self.store.uploads.pop(query["uploadId"], None)
            else:
                self.store.put(self._name(), None)
        self._send(204, b"")

    def do_POST(self) -> None:
        """Begin an object of parts, or finish it; or remove many objects."""
        bucket, query = self._begin()
        body = self._body() or b""
        self._count("POST")
        if self._lacks_bucket():
            return
        store = self.store
        with store.lock:
            if "uploads" in query:
                upload = f"upload-{store.num_changes}-{len(store.uploads)}"
                store.uploads[upload] = {}
                answer = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            elif "uploadId" in query:
                parts = store.uploads.pop(query["uploadId"])
                content = b"".join(parts[number] for number in sorted(parts))
                store.put(self._name(), content)
                etag = f"<ETag>&quot;{_etag(content)}&quot;</ETag>"
                answer = f"<CompleteMultipartUploadResult>{etag}</CompleteMultipartUploadResult>"
            else:
                keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for key in keys:
                    store.put(f"{bucket}/{html.unescape(key)}", None)
                deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                answer = f"<DeleteResult>{deleted}</DeleteResult>"
        self._send(200, answer.encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _begin(self) -> tuple[str, dict[str, str]]:
        time.sleep(self.store.seconds)
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return self._name().partition("/")[0], {name: values[0] for name, values in query.items()}

    def _count(self, what: str) -> None:
        with self.store.lock:
            self.store.requests[what] += 1

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def _has(self, bucket: str) -> bool:
        return self.store.buckets is None or bucket in self.store.buckets

    def _lacks_bucket(self) -> bool:
        """Say that there is no such bucket, if there is none."""
        is_lacking = not self._has(self._name().partition("/")[0])
        if is_lacking:
            self._send(404, b"<Error><Code>NoSuchBucket</Code><Message>There is no such bucket</Message></Error>")
        return is_lacking

    def _key(self) -> str:
        return self._name().partition("/")[2]

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                return None
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        chunks, place = [], 0
        while place < len(body):
            end = body.index(b"\r\n", place)
            size = int(body[place:end].split(b";")[0], 16)
            if not size:
                break
            chunks.append(body[end + 2 : end + 2 + size])
            place = end + size + 4
        return b"".join(chunks)

    def _send(
        self,
        status: int,
        content: bytes,
        *,
        etag: str = "",
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Last-Modified", _MODIFIED_HEADER)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        with suppress(ConnectionError):  # who asked may be gone
            self.wfile.write(content)


@lru_cache(maxsize=1024)
def _etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@contextmanager
def object_store(*, seconds: float = 0.0, buckets: Collection[str] | None = None) -> Iterator[ObjectStore]:
    """Yield a store on this machine that `s3://` addresses of this process, and of those it starts, lead to.

    Args:
        seconds: that each request takes.
        buckets: that there are; None for any number.
    """
    import s3fs

    store = ObjectStore(seconds=seconds, buckets=buckets)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.stop = server.stop
    store.url = f"http://127.0.0.1:{server.server_port}"
    environment = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    environment |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": store.url}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # An instance keeps the endpoint that it was made with.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with mock.patch.dict(os.environ, environment):
            yield store
    finally:
        server.stop()
        thread.join()
        s3fs.S3FileSystem.clear_instance_cache()
