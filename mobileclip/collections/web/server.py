"""The local web server of `mobileclip serve`; it listens on this machine only."""

from __future__ import annotations

import errno
import socket

import uvicorn

from mobileclip.collections.collection import Collection
from mobileclip.collections.web.application import build_application
from mobileclip.terminal import say

_ADDRESS = "127.0.0.1"
_LAST_PORT = 65_535
_SECONDS_TO_END = 5


def serve(collection: Collection, *, port: int) -> None:
    """Show a collection in the browsers of this machine, until the process is told to stop.

    Args:
        collection: that is searched.
        port: from 1 to 65535; 0 takes a free one. The URL is printed.

    Raises:
        ValueError: if there is no such port, or the index is damaged.
        OSError: if it cannot be read, or the port cannot be had.
    """
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"port is {port}, expected 1 to {_LAST_PORT}, or 0 for any that is free")
    collection.load()
    with _listening(port) as listener:
        config = uvicorn.Config(
            build_application(collection),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
        say(f"open http://{_ADDRESS}:{listener.getsockname()[1]}/ in a browser; Ctrl-C ends it")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((_ADDRESS, port))
    except OSError as error:
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be had ({error})"
        raise OSError(f"port {port} {why}; choose another one with --port, or 0 for any that is free") from None
