"""Checks access to the web server, and limits uploaded images."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class SecurityMiddleware:
    """Middleware that rejects requests from other sites, and sends the security headers of the page.

    The middleware checks the Host header to prevent DNS rebinding, and the headers Origin and Sec-Fetch-Site to reject
    requests from other sites. Links to the page work from any site.

    Args:
        app: application that answers the accepted requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and reject it or pass it to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        problem = _problem(scope)
        if problem is None:
            await self.app(scope, receive, send_guarded)
        else:
            await JSONResponse({"error": problem}, status_code=403)(scope, receive, send_guarded)


def _problem(scope: Scope) -> str | None:
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if host.partition(":")[0].lower() not in _HOSTS:
        return "this page is only for the machine that serves it; open http://127.0.0.1 with the port"
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return "the request came from a different site; open the page directly"
    is_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link:
        return "the request came from a different site; open the page directly"
    return None


MOST_IMAGE_BYTES = 2**25
"""Maximum size of an uploaded query image, in bytes."""

_MOST_BYTES = 2 * MOST_IMAGE_BYTES
_IMAGE_TYPE = "application/octet-stream"
_BUSY = "too many image searches at once; try again in a moment"

T = TypeVar("T")


class Uploads:
    """Receives images from concurrent requests, up to a total size; `num_free` is the number of free bytes.

    Args:
        num_bytes: limit for all uploads, in bytes; above this limit, the server asks clients to retry.
    """

    def __init__(self, num_bytes: int = _MOST_BYTES) -> None:
        self.num_free = num_bytes
        self._turn: anyio.CapacityLimiter | None = None

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the encoded image in a request's body.

        Raises:
            HTTPException: if the content type is not `application/octet-stream`, the image is empty or too large, or
                all uploads together exceed the limit.
        """
        # HTML forms of other sites cannot send this content type.
        if request.headers.get("content-type", "").partition(";")[0].strip() != _IMAGE_TYPE:
            raise HTTPException(415, f"expected the bytes of an image, with the content type {_IMAGE_TYPE}")
        data = bytearray()
        try:
            async for chunk in request.stream():
                if len(data) + len(chunk) > MOST_IMAGE_BYTES:
                    raise HTTPException(413, f"the image is larger than {MOST_IMAGE_BYTES >> 20} MiB; reduce its size")
                if len(chunk) > self.num_free:
                    raise HTTPException(503, _BUSY, headers={"Retry-After": "2"})
                self.num_free -= len(chunk)
                data += chunk
            if not data:
                raise HTTPException(400, "the image is empty; choose another image")
            yield bytes(data)
        finally:
            self.num_free += len(data)

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Run functions one at a time, since each may decode a large image; return the result of the function."""
        if self._turn is None:
            self._turn = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, limiter=self._turn)
