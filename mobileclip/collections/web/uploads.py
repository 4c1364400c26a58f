"""Pictures that are searched with: so many bytes of them are held at once, and one is decoded after another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request

MOST_PICTURE_BYTES = 2**25
"""Of a picture that is searched with."""

_MOST_BYTES = 2 * MOST_PICTURE_BYTES
_PICTURE_TYPE = "application/octet-stream"
_BUSY = "too many pictures are searched with at once; try again in a moment"

T = TypeVar("T")


class Uploads:
    """Uploaded pictures, held while their requests are answered, up to a limit; `num_free` is how many bytes are left.

    Args:
        num_bytes: of all of them, at most; who would exceed it is told to come again.
    """

    def __init__(self, num_bytes: int = _MOST_BYTES) -> None:
        self.num_free = num_bytes
        self._turn: anyio.CapacityLimiter | None = None

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the picture that a request sends.

        Raises:
            HTTPException: if it is none, is too large, or there is no room beside others.
        """
        # Forms of other sites cannot send this type.
        if request.headers.get("content-type", "").partition(";")[0].strip() != _PICTURE_TYPE:
            raise HTTPException(415, f"a picture is sent as its bytes, with the content type {_PICTURE_TYPE}")
        data = bytearray()
        try:
            async for chunk in request.stream():
                if len(data) + len(chunk) > MOST_PICTURE_BYTES:
                    raise HTTPException(
                        413, f"the picture is larger than {MOST_PICTURE_BYTES >> 20} MiB; make it smaller"
                    )
                if len(chunk) > self.num_free:
                    raise HTTPException(503, _BUSY, headers={"Retry-After": "2"})
                self.num_free -= len(chunk)
                data += chunk
            if not data:
                raise HTTPException(400, "the picture is empty; choose another one")
            yield bytes(data)
        finally:
            self.num_free += len(data)

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Return what a function gives, in a thread, of which there is one: each decodes a picture of any size."""
        if self._turn is None:
            self._turn = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, limiter=self._turn)
