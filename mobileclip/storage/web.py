"""Files from web servers: read through the standard library, within bounds, from any byte on."""

from __future__ import annotations

import http.client
import io
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import NoReturn

from mobileclip.machine import raise_machine_fault
from mobileclip.storage.allowed_hosts import RefusedHostError
from mobileclip.storage.backend import Backend, ByteStream, Info, StorageError
from mobileclip.storage.connection import Exchange
from mobileclip.storage.limits import store_limits
from mobileclip.storage.printable import printable, without_secrets

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
