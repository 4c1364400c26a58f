"""How much a web server may send beside the body."""

import socket
from http.client import HTTPException

import pytest

from mobileclip.storage import StoreLimits
from mobileclip.storage.web import Exchange
from tests.errors import fails


@pytest.mark.parametrize("num_bytes", [0, 10])
def test_a_mebibyte_may_come_beside_what_is_asked_for_and_no_byte_more(num_bytes):
    exchange, buffer, left = Exchange(StoreLimits()), bytearray(2**14), 2**20 + num_bytes
    exchange.begin_body()
    exchange.allow(num_bytes)
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb", buffering=0) as stream:
        while left:
            theirs.sendall(bytes(min(left, len(buffer))))
            left -= exchange.receive(stream, ours, buffer)
        theirs.sendall(b"x")
        with fails(HTTPException):
            exchange.receive(stream, ours, buffer)
