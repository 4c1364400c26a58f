"""Web servers that are slow, broken or hostile."""

# ruff: noqa: ARG005 - not every server cares what it is asked for

from __future__ import annotations

import gzip
import io
import itertools
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import attrs

from mobileclip.storage import StoreLimits

LIMITS = StoreLimits(
    answer_seconds=0.4,
    stall_seconds=0.3,
    min_bytes_per_second=10_000.0,
    recovery_seconds=0.8,
    call_seconds=1.0,
    retry_delays_seconds=(0.01,),
    max_bytes=20_000_000,
)


def _shard() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(4):
            for extension, data in (("txt", f"picture {number}".encode()), ("bin", bytes([number]) * 9000)):
                header = tarfile.TarInfo(f"{number:04d}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


SHARD = _shard()
HALF = len(SHARD) // 2


@attrs.frozen
class Request:
    """What a client asks for: the number of its request, the method, the path, and the first byte, or None."""

    number: int
    method: str
    path: str
    start: int | None


Answer = Callable[[socket.socket, Request], None]
SERVERS: dict[str, Answer] = {}


def server(name: str) -> Callable[[Answer], Answer]:
    def enter(answer: Answer) -> Answer:
        SERVERS[name] = answer
        return answer

    return enter


def head(status: str = "200 OK", *lines: str, length: object = len(SHARD)) -> bytes:
    own = () if length is None else (f"Content-Length: {length}",)
    return "\r\n".join((f"HTTP/1.1 {status}", *own, *lines, "", "")).encode("latin-1")


def part(start: int, *lines: str, size: object = len(SHARD)) -> bytes:
    where = f"Content-Range: bytes {start}-{len(SHARD) - 1}/{size}"
    return head("206 Partial Content", where, *lines, length=len(SHARD) - start)


def reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def forever(conn: socket.socket, data: bytes, pause: float = 0.0) -> None:
    while True:
        conn.sendall(data)
        time.sleep(pause)


def says(*parts: bytes) -> Answer:
    return lambda conn, _: conn.sendall(b"".join(parts))


def then_breaks(resumed: Answer, *lines: str) -> Answer:
    """Half the file and a broken connection; what comes after that is `resumed`'s."""

    def answer(conn: socket.socket, request: Request) -> None:
        if request.start is None:
            conn.sendall(head("200 OK", *lines) + SHARD[:HALF])
        else:
            resumed(conn, request)

    return answer


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


CHUNKED = head("200 OK", "Transfer-Encoding: chunked", length=None)

# Honest ones, whose files must be right.
SERVERS["honest"] = says(head(), SHARD)
SERVERS["honest, without a length"] = says(head(length=None), SHARD)
SERVERS["honest, in chunks"] = says(CHUNKED, chunked(SHARD[:99], SHARD[99:]), b"0\r\n\r\n")
SERVERS["honest, another ETag each time"] = lambda conn, request: conn.sendall(
    head("200 OK", f'ETag: "{time.time_ns()}"') + SHARD
)
SERVERS["honest, an encoding of nothing"] = says(head("200 OK", "Content-Encoding: "), SHARD)
SERVERS["breaks, and goes on with the rest"] = then_breaks(
    lambda conn, request: conn.sendall(part(request.start) + SHARD[request.start :])
)
SERVERS["breaks, and begins again"] = then_breaks(says(head(), SHARD))
SERVERS["a redirection"] = lambda conn, request: conn.sendall(
    head() + SHARD if request.path == "/there" else head("302 Found", "Location: /there", length=0)
)
SERVERS["busy once"] = lambda conn, request: conn.sendall(
    head("503 Service Unavailable", length=0) if request.number == 0 else head() + SHARD
)
HONEST = tuple(SERVERS)


@server("honest and slow")
def _slow(conn, request):
    conn.sendall(head())
    for start in range(0, len(SHARD), 4000):
        conn.sendall(SHARD[start : start + 4000])
        time.sleep(0.05)


@server("stalls once, and goes on with the rest")
def _stalls_once(conn, request):
    conn.sendall(head() if request.start is None else part(request.start))
    if request.start is None:
        conn.sendall(SHARD[:HALF])
        time.sleep(2)
    else:
        conn.sendall(SHARD[request.start :])


HONEST += ("honest and slow", "stalls once, and goes on with the rest")

# Time.
SERVERS["never answers"] = lambda conn, request: time.sleep(5)
SERVERS["answers nothing and hangs up"] = lambda conn, request: None
SERVERS["a head byte by byte"] = lambda conn, request: [forever(conn, b"H", 0.05)]
SERVERS["a body byte by byte"] = lambda conn, request: [conn.sendall(head()), forever(conn, b"x", 0.05)]
SERVERS["stalls in the middle"] = lambda conn, request: [conn.sendall(head() + SHARD[:HALF]), time.sleep(5)]
SERVERS["stalls in the middle of a chunk's size"] = lambda conn, request: [conn.sendall(CHUNKED + b"1"), time.sleep(5)]
SERVERS["a byte for each connection"] = lambda conn, request: [
    time.sleep(0.03),
    conn.sendall(part(request.start or 0) + SHARD[request.start or 0 :][:1]),
]
SERVERS["busy for ever"] = says(head("503 Service Unavailable", "Retry-After: 1000000000", length=0))
SERVERS["broken for ever"] = says(head("500 Internal Server Error", length=0))

SLOW = (*(name for name in SERVERS if name not in HONEST), *HONEST[-2:])

# Lengths and ends.
SERVERS["resets in the middle"] = lambda conn, request: [conn.sendall(head() + SHARD[:HALF]), reset(conn)]
SERVERS["resets at once"] = lambda conn, request: reset(conn)
SERVERS["a length that is too long"] = says(head(length=len(SHARD) + 5000), SHARD)
SERVERS["a length of 5,000 digits"] = says(head(length="9" * 5000), SHARD[:HALF])
SERVERS["a negative length"] = says(head(length=-5), SHARD[:HALF])
SERVERS["two lengths"] = says(head("200 OK", "Content-Length: 3", length=5), SHARD[:HALF])
SERVERS["a length of words"] = says(head(length="many"), SHARD[:HALF])
SERVERS["an end that never comes"] = lambda conn, request: [
    conn.sendall(head(length=None) + SHARD[:-1024]),
    forever(conn, SHARD[:5120]),
]
SERVERS["a file without end, in chunks"] = lambda conn, request: [
    conn.sendall(CHUNKED + chunked(SHARD)),
    forever(conn, chunked(SHARD[:5000])),
]
SERVERS["an empty answer"] = says(head("204 No Content", length=None))
SERVERS["a length of nothing"] = says(head(length=0))

# Parts.
SERVERS["a part that nobody asked for"] = says(head("206 Partial Content", length=100), SHARD[:100])
SERVERS["the start, as a part that nobody asked for"] = says(
    head("206 Partial Content", f"Content-Range: bytes 0-99/{len(SHARD)}", length=100), SHARD[:100]
)
SERVERS["parts of several kinds"] = says(
    head("206 Partial Content", "Content-Type: multipart/byteranges; boundary=x", length=100), SHARD[:100]
)
SERVERS["goes on elsewhere"] = then_breaks(says(part(17), SHARD[17:]))
SERVERS["goes on without saying where"] = then_breaks(
    lambda conn, request: conn.sendall(
        head("206 Partial Content", length=len(SHARD) - request.start) + SHARD[request.start :]
    )
)
SERVERS["goes on with a part that is too short"] = then_breaks(
    lambda conn, request: conn.sendall(
        head("206 Partial Content", f"Content-Range: bytes {request.start}-{request.start + 9}/{len(SHARD)}", length=10)
        + SHARD[request.start :][:10]
    )
)
SERVERS["goes on in a larger file"] = then_breaks(
    lambda conn, request: conn.sendall(
        head(
            "206 Partial Content",
            f"Content-Range: bytes {request.start}-{len(SHARD) + 99}/{len(SHARD) + 100}",
            length=len(SHARD) + 100 - request.start,
        )
        + SHARD[request.start :]
        + bytes(100)
    )
)
SERVERS["goes on with numbers of 5,000 digits"] = then_breaks(
    says(
        head("206 Partial Content", f"Content-Range: bytes {'1' * 5000}-{'2' * 5000}/{'3' * 5000}", length=5), b"12345"
    )
)
SERVERS["refuses to go on"] = then_breaks(
    lambda conn, request: conn.sendall(
        head() if request.method == "HEAD" else head("416 Range Not Satisfiable", length=0)
    )
)
SERVERS["goes on in another file"] = then_breaks(
    lambda conn, request: conn.sendall(part(request.start, 'ETag: "b"') + SHARD[request.start :]), 'ETag: "a"'
)

# Redirections.
SERVERS["a redirection to itself"] = says(head("302 Found", "Location: /a.tar", length=0))
SERVERS["redirections without end"] = lambda conn, request: conn.sendall(
    head("302 Found", f"Location: /{request.path.count('x') * 'x'}x", length=0)
)
for _target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://127.0.0.1/", "http://[::bad"):
    SERVERS[f"a redirection to {_target}"] = says(head("302 Found", f"Location: {_target}", length=0))
SERVERS["a redirection with a line break"] = says(head("302 Found", "Location: http://127.0.0.1/\x0b\x00x", length=0))
SERVERS["a redirection to nowhere"] = says(head("302 Found", length=0))
SERVERS["a redirection with a body without end"] = lambda conn, request: [
    conn.sendall(head("302 Found", "Location: /there", length=None)),
    forever(conn, bytes(65536)),
]

# Heads.
SERVERS["headers without end"] = lambda conn, request: [
    conn.sendall(b"HTTP/1.1 200 OK\r\n"),
    forever(conn, b"X: y\r\n" * 1000),
]
SERVERS["a header without end"] = lambda conn, request: [
    conn.sendall(b"HTTP/1.1 200 OK\r\nX: "),
    forever(conn, b"y" * 65536),
]
SERVERS["a first line without end"] = lambda conn, request: forever(conn, b"y" * 65536)
SERVERS["told to go on for ever"] = lambda conn, request: forever(conn, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
SERVERS["no first line"] = says(SHARD)
SERVERS["a first line of words"] = says(b"HTTP/1.1 well then\r\n\r\n", SHARD)
SERVERS["a status of 999999"] = says(head("999999 Fine"), SHARD)
SERVERS["a status of 299"] = says(head("299 Fine"), SHARD)
SERVERS["a reason that moves the cursor"] = says(head("404 \x1b[2J\x1b[31mgone\x08\x08", length=0))
SERVERS["a reason of 60,000 letters"] = says(head(f"404 {'x' * 60_000}", length=0))
SERVERS["headers that are none"] = says(b"HTTP/1.1 200 OK\r\n\x00\xff\xfe\r\nContent-Length\r\n\r\n", SHARD[:HALF])
SERVERS["a web page"] = says(head("200 OK", "Content-Type: text/html", length=13), b"<html></html>")
SERVERS["asks for a password"] = says(head("401 No", 'WWW-Authenticate: Basic realm="\x1b[2J"', length=0))

# Chunks and what is packed.
SERVERS["chunks of no size"] = says(CHUNKED, b"zz\r\n", SHARD)
SERVERS["a chunk of 2^64"] = says(CHUNKED, b"10000000000000000\r\n", SHARD[:HALF])
SERVERS["a chunk of minus one"] = says(CHUNKED, b"-1\r\n", SHARD[:HALF])
SERVERS["chunks without a last one"] = says(CHUNKED, chunked(SHARD[:HALF]))
SERVERS["a chunk with a description without end"] = lambda conn, request: [
    conn.sendall(CHUNKED + b"5;"),
    forever(conn, b"x" * 65536),
]
SERVERS["chunks with a tail without end"] = lambda conn, request: [
    conn.sendall(CHUNKED + chunked(SHARD[:HALF]) + b"0\r\n"),
    forever(conn, b"X: y\r\n" * 1000),
]
_BOMB = gzip.compress(bytes(50_000_000))
SERVERS["compressed a thousandfold"] = says(head("200 OK", "Content-Encoding: gzip", length=len(_BOMB)), _BOMB)
SERVERS["packed in a way that nobody knows"] = says(head("200 OK", "Content-Encoding: \x1b[2Jbr"), SHARD)

# A length that is too short is where the file ends, as far as anyone can know; a shard shows it.
SERVERS["a length that is too short"] = says(head(length=HALF), SHARD)
_CUT = ("a length that is too short", "a length of nothing", "a negative length", "two lengths", "a length of words")
_CUT += ("a length of 5,000 digits", "headers that are none")


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    numbers = itertools.count()

    def work(conn: socket.socket) -> None:
        with conn, suppress(OSError):
            conn.settimeout(5)
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (piece := conn.recv(65536)):
                    return
                asked += piece
            method, path, *_ = asked.decode("latin-1").split(" ")
            start = asked.lower().partition(b"range: bytes=")[2].partition(b"-")[0]
            answer(conn, Request(next(numbers), method, path, int(start) if start else None))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=work, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.tar"
    finally:
        listening.close()
