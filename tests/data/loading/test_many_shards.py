"""DataCompDR-1B's 65,536 shards in a store: a run's first batch asks for what its readers need, and nothing else."""

from __future__ import annotations

import http.server
import re
import time
from collections import Counter

import attrs
import pytest

from mobileclip import specs
from mobileclip.data import StreamPosition, card_of_shards, expand_shards, write_shard
from mobileclip.recipes.training import mobileclip_run
from tests.data.made_samples import make_sample
from tests.stores import serving

NUM_SHARDS, NUM_READERS, SHARD_SIZE = 65_536, 64, 12
PATTERN = "s3://data/dr/{00000..65535}.tar"


class _Store(http.server.BaseHTTPRequestHandler):
    """An S3 store in which every shard of the pattern lies, and nothing else."""

    protocol_version = "HTTP/1.1"
    contents: list[bytes]
    asked: Counter[tuple[str, str]]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.asked[self.command, self.path] += 1
        found = re.fullmatch(r"/data/dr/(\d{5})\.tar", self.path)
        body = b"" if found is None else self.contents[int(found[1]) % len(self.contents)]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(404 if found is None else 200 if asked is None else 206)
        if asked is not None:
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(body))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
            body = body[start:stop]
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the store is asked for: method and path, with the number of times."""
    import s3fs

    contents = [
        write_shard(tmp_path / f"{place}.tar", (make_sample(SHARD_SIZE * place + n) for n in range(SHARD_SIZE)))
        for place in range(4)
    ]
    requests: Counter[tuple[str, str]] = Counter()
    attributes = {"contents": [path.read_bytes() for path in contents], "asked": requests}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Store", (_Store,), attributes))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    with serving(server):
        yield requests
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("step", [0, 10_000])
def test_the_first_batch(asked, step):
    """Two requests a reader, however many shards there are; a run that resumes asks for no more."""
    data = attrs.evolve(
        mobileclip_run(specs.mobileclip_s2()).data, shards=(PATTERN,), batch_size=64, num_readers=NUM_READERS,
        num_workers=0, teacher_dim=6,
    )  # fmt: skip
    turn, sample = divmod(step, SHARD_SIZE)
    places = tuple((reader, turn, 0, sample) for reader in range(NUM_READERS)) if step else ()
    position = StreamPosition(first_batch=step, num_readers=NUM_READERS if step else 0, places=places)
    started = time.monotonic()
    batch = next(data.build().stream(position))
    assert time.monotonic() - started < 10
    assert len(batch) == 64
    assert asked.total() <= 2 * NUM_READERS
    assert len({path for _, path in asked}) == NUM_READERS


def test_the_card_is_looked_for_once(asked):
    assert card_of_shards(expand_shards(PATTERN)) is None
    assert asked.total() <= 3
