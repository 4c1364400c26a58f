"""What is said of servers that are slow, broken or hostile, and that honest ones are read."""

import os
import socket
import time
from http.client import HTTPException
from pathlib import Path

import attrs
import pytest

from mobileclip import storage
from mobileclip.storage import StorageError
from mobileclip.storage.web import Exchange
from tests.build.servers import HALF, HONEST, LIMITS, SERVERS, SHARD, head, serving, then_breaks
from tests.errors import fails
from tests.waiting import wait_for

LATE = "no complete response within 0.4 s"
STALLED = "less than 10000 bytes a second arrived for 0.3 s"
ANOTHER_PART = "part of the file than requested"
NO_END = "HTTPException: the headers, redirects or framing"
# On a busy machine a sound answer can take longer than these wait, so that one bound alone is short.
PATIENT = attrs.evolve(LIMITS, answer_seconds=20.0, stall_seconds=1.0, recovery_seconds=20.0)
SHORT = {
    "never answers": {"answer_seconds": 0.4},
    "a head byte by byte": {"answer_seconds": 0.4},
    "a body byte by byte": {"stall_seconds": 0.3},
    "stalls in the middle": {"stall_seconds": 0.3},
    "a byte for each connection": {"recovery_seconds": 0.8},
}
SAID = {
    StorageError: {
        "never answers": LATE,
        "a head byte by byte": LATE,
        "a body byte by byte": STALLED,
        "stalls in the middle": f"was interrupted at byte {HALF}: ADDRESS: TimeoutError: {STALLED}",
        "a byte for each connection": "is too slow: 0.8 s below 10000 bytes per second",
        "a length that is too long": "the connection closed 5000 bytes before the end",
        "a redirection to ftp://127.0.0.1/x": "unknown url type: ftp",
        "a redirection with a body without end": NO_END,
        "told to go on for ever": NO_END,
        "chunks with a tail without end": NO_END,
    },
    OSError: {
        "an end that never comes": "has more than 1000000 bytes",
        "an empty answer": "status 204",
        "a part that nobody asked for": ANOTHER_PART,
        "the start, as a part that nobody asked for": ANOTHER_PART,
        "goes on elsewhere": ANOTHER_PART,
        "goes on with a part that is too short": ANOTHER_PART,
        "goes on in a larger file": "changed while it was read",
        "goes on in another file": "changed while it was read",
        "refuses to go on": f"the server refuses to send bytes from {HALF} on",
        "a redirection to file:///etc/passwd": "the server answers 302",
        "a redirection to http://[::bad": "is not a web address: Invalid IPv6 URL",
        "a status of 299": "status 299",
        "a web page": "the server answers with a web page instead of the file",
        "compressed a thousandfold": "arrives compressed (gzip)",
    },
    FileNotFoundError: {
        "a reason that moves the cursor": r"the server answers 404 \x1b[2J\x1b[31mgone\x08\x08",
        "a reason of 60,000 letters": f"404 {'x' * 100}... (60,000 characters)",
    },
    PermissionError: {"asks for a password": "the server answers 401 No"},
}


@pytest.mark.parametrize("name", HONEST)
def test_what_an_honest_server_sends_is_read(name):
    with serving(SERVERS[name]) as address, storage.use_limits(PATIENT):
        assert storage.read_bytes(address, limit=len(SHARD)) == SHARD


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SAID.items() for name in names])
def test_what_is_wrong_is_said_in_time(kind, name):
    started = time.monotonic()
    limits = attrs.evolve(PATIENT, **SHORT.get(name, {}))
    with serving(SERVERS[name]) as address, storage.use_limits(limits), fails(kind) as caught:
        storage.read_bytes(address, limit=1_000_000)
    assert type(caught.value) is kind
    assert SAID[kind][name].replace("ADDRESS", address) in str(caught.value)
    assert time.monotonic() - started < 15


CLOSED = "a web page", "goes on elsewhere", "a redirection with a body without end", "a redirection to http://[::bad"


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_refused_is_closed_at_once(name):
    """Also where the error is kept, and with it all that was at hand when it was raised."""
    with serving(SERVERS[name]) as address, storage.use_limits(PATIENT):
        before = num_sockets()
        with fails(OSError) as caught:
            storage.read_bytes(address, limit=1_000_000)
        wait_for(lambda: num_sockets() <= before)
        assert caught.value


def num_sockets():
    """Of this process, the server's ones included."""
    return sum("socket:" in os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir())


def test_a_part_without_a_place_or_a_length_is_refused():
    def go_on(conn, request):
        conn.sendall(head("206 Partial Content", length=None) + SHARD[request.start :])

    with serving(then_breaks(go_on)) as address, storage.use_limits(PATIENT), fails(OSError):
        storage.read_bytes(address, limit=len(SHARD))


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_server_tells_a_changed_file_by_either_header(header):
    values = iter(("one", "one", "two"))

    def answer(conn, _):
        conn.sendall(head("200 OK", f"{header}: {next(values)}"))

    with serving(answer) as address, storage.use_limits(PATIENT):
        first, same, changed = (storage.fingerprint(address) for _ in range(3))
    assert first == same != changed


def test_a_file_larger_than_the_limits_is_given_up():
    server = serving(SERVERS["a file without end, in chunks"])
    with server as address, storage.use_limits(PATIENT), fails(OSError, "20000000"):
        storage.read_bytes(address, limit=10**9)


@pytest.mark.parametrize("num_bytes", [0, 10])
def test_a_mebibyte_may_come_beside_what_is_asked_for_and_no_byte_more(num_bytes):
    exchange, buffer, left = Exchange(storage.StoreLimits()), bytearray(2**14), 2**20 + num_bytes
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
