"""Files from web servers: read through the standard library, with timeouts, from any byte on."""

from __future__ import annotations

import http.client
import io
import re
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from typing import NoReturn

from mobileclip.storage.backend import ByteStream, Info, StorageError

# Without an answer, or without a further byte, for so long, a connection counts as broken.
TIMEOUT_SECONDS = 30.0

_CONTENT_RANGE = re.compile(r"bytes (\d+)-")
# What an address may hold; everything else is percent-encoded, as browsers do.
_SAFE = "%/:=&?~#+!$,;'@()*[]"
_PASSING = (408, 425, 429)


class WebBackend:
    """`http:` and `https:` addresses, which can only be read."""

    def check(self, address: str, *, write: bool = False) -> None:
        """Refuse to write; reading needs no package."""
        if write:
            raise ValueError(f"{address} can only be read; write to a path, or to an address such as s3://bucket/key")

    def open(self, address: str, position: int) -> tuple[ByteStream, str]:
        """Return the answer from `position` on, and the file's version."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        try:
            response = _request(address, "GET", headers)
        except _PastTheEndError:
            return io.BytesIO(), self.info(address).version
        if position and response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != position:
                raise OSError(f"{address} answers with another part of the file than it was asked for")
            return _Body(address, response), _version(response)
        body = _Body(address, response)
        body.discard(position)
        return body, _version(response)

    def info(self, address: str) -> Info:
        """Return size and version, as the server's headers tell."""
        try:
            response = _request(address, "HEAD", {})
        except OSError as error:
            if isinstance(error, (FileNotFoundError, StorageError)):
                raise
            # Some servers answer to GET only.
            response = _request(address, "GET", {})
        with response:
            return Info(size=_length(response), version=_version(response), mark=response.headers.get("ETag", ""))

    def is_directory(self, address: str) -> bool:  # noqa: ARG002 - there are none
        """Return False: web servers have no folders that could be listed."""
        return False

    def find(self, address: str, *, recursive: bool) -> dict[str, Info]:  # noqa: ARG002 - nothing can be listed
        """Refuse: web servers list nothing."""
        raise ValueError(f"{address} cannot be listed; name the files, a brace pattern such as {{000..127}} will do")

    def upload(self, source: str, address: str) -> NoReturn:  # noqa: ARG002 - nothing can be written
        """Refuse: nothing can be written there."""
        raise ValueError(f"{address} can only be read")

    def remove(self, address: str) -> NoReturn:
        """Refuse: nothing can be removed there."""
        raise ValueError(f"{address} can only be read")


class _PastTheEndError(OSError):
    """The file ends before the byte that was asked for."""


class _Body(io.RawIOBase):
    """An answer that tells a broken connection from the end: http.client does not."""

    def __init__(self, address: str, response: http.client.HTTPResponse) -> None:
        super().__init__()
        self._address = address
        self._response = response
        self._remaining = _length(response)

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, none at the end."""
        try:
            data = self._response.read(None if size < 0 else size)
        except (OSError, http.client.HTTPException) as error:
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
        self._response.close()
        super().close()


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Return what follows redirections to web servers only: by default, they may lead to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _request(address: str, method: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    headers = {"User-Agent": "mobileclip", "Accept-Encoding": "identity", **headers}
    try:
        request = urllib.request.Request(urllib.parse.quote(address, safe=_SAFE), headers=headers, method=method)  # noqa: S310 - only WebBackend's addresses come here
        response = _opener().open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        _refuse(address, error.code, error.reason)
    except (ValueError, http.client.InvalidURL) as error:
        raise OSError(f"{address} is not a web address: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise StorageError(f"{address} cannot be reached: {_words(error)}") from error
    assert isinstance(response, http.client.HTTPResponse), "only web servers are asked"
    return response


def _refuse(address: str, status: int, reason: str) -> NoReturn:
    what = f"{address}: the server answers {status} {reason}"
    if status in (404, 410):
        raise FileNotFoundError(what)
    if status in (401, 403):
        raise PermissionError(what)
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _PastTheEndError(what)
    if status >= 500 or status in _PASSING:
        raise StorageError(what)
    raise OSError(what)


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _version(response: http.client.HTTPResponse) -> str:
    """Return what stays the same for parts and the whole of a file."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
