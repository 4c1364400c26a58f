"""Inflating by zlib-ng, which is installed for the tests, against zlib."""

import bz2
import gzip
import io
import itertools
import lzma
import tracemalloc
import zlib

import numpy as np
import pytest

from mobileclip.data.samples import readers as module
from mobileclip.data.samples.limits import TooLargeError
from mobileclip.data.samples.readers import gunzip
from mobileclip.data.shards.tar import InflatedFile
from tests.errors import fails

CONTENT = np.random.default_rng(0).standard_normal(5000).astype(np.float32).tobytes() + b"again " * 1000


@pytest.fixture(params=["zlib-ng", "zlib"])
def library(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(module, "_library", lambda: zlib)
    else:
        from zlib_ng import zlib_ng

        assert module._library() is zlib_ng


@pytest.mark.usefixtures("library")
class TestInflate:
    def test_whole_and_parts_and_padding(self):
        parts = gzip.compress(CONTENT[:700]) + gzip.compress(b"") + gzip.compress(CONTENT[700:]) + bytes(30)
        for data, limit in itertools.product((gzip.compress(CONTENT), parts), (len(CONTENT), 2 * len(CONTENT), 2**40)):
            assert gunzip(data, limit=limit) == CONTENT
        with pytest.raises(TooLargeError):
            gunzip(parts, limit=len(CONTENT) - 1)
        with fails(ValueError, "64"):
            gunzip(gzip.compress(b"") * 65, limit=1)

    def test_no_more_than_the_limit_is_inflated(self):
        bomb = gzip.compress(bytes(2**24))
        tracemalloc.start()
        try:
            with fails(TooLargeError, "5,000"):
                gunzip(bomb, limit=5000)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_damage(self):
        for data in (b"nothing that gzip wrote", gzip.compress(CONTENT)[:-20]):
            with fails(zlib.error):
                gunzip(data, limit=10**6)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("library", "compress"),
    [("zlib-ng", gzip.compress), ("zlib", gzip.compress), ("zlib-ng", bz2.compress), ("zlib-ng", lzma.compress)],
    indirect=["library"],
)
class TestInflatedFile:
    def opened(self, data, inflation=256):
        stream = io.BytesIO(data)
        return InflatedFile(stream, stream.read(10), inflation=inflation)

    @pytest.mark.parametrize("step", [1, 1000, 2**20])
    def test_reads_on(self, compress, step):
        data = CONTENT[:3000] if step == 1 else CONTENT * 3
        file = self.opened(compress(data))
        made = b""
        while piece := file.read(step):
            assert len(piece) == min(step, len(data) - len(made))
            made += piece
        assert made == data
        assert file.read(1) == b""

    def test_parts_and_padding(self, compress):
        file = self.opened(compress(CONTENT[:700]) + compress(b"") + compress(CONTENT[700:]) + bytes(32))
        assert file.read(10**6) == CONTENT

    def test_damage(self, compress):
        data = compress(CONTENT)
        for kept in (9, 30, -1):
            with fails(EOFError):
                self.opened(data[:kept]).read(10**6)
        middle = len(data) // 2
        with fails((OSError, EOFError)):
            self.opened(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]).read(10**6)

    def test_bombs(self, compress):
        data = compress(bytes(2**22)) * 32
        assert self.opened(data, inflation=2**22).read(2**26 + 2**25) == bytes(2**26 + 2**25)
        with fails(TooLargeError, "2"):
            self.opened(data, inflation=2).read(2**26 + 2**25)
