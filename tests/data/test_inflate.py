"""Inflating by zlib-ng, which is installed for the tests, against zlib."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest

from mobileclip.data import inflate as module
from mobileclip.data.inflate import InflateStream, inflate

CONTENT = np.random.default_rng(0).standard_normal(5000).astype(np.float32).tobytes() + b"again " * 1000


@pytest.fixture(params=["zlib-ng", "zlib"])
def library(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(module, "_library", lambda: zlib)
    else:
        assert module._library().__name__ == "zlib_ng.zlib_ng"


@pytest.mark.usefixtures("library")
class TestInflate:
    def test_whole(self):
        for size in (1, len(CONTENT), 2 * len(CONTENT)):
            assert inflate(gzip.compress(CONTENT), wbits=31, size=size) == CONTENT

    @pytest.mark.parametrize("step", [1000, 7777, len(CONTENT)])
    def test_in_steps(self, step):
        compressor = zlib.compressobj(wbits=-15)
        stream, made = InflateStream(compressor.compress(CONTENT) + compressor.flush() + b"behind it", -15), b""
        while len(made) < len(CONTENT):
            more = stream.read(step)
            made += more
            assert len(more) == min(step, len(CONTENT) - len(made) + len(more))
            assert made == CONTENT[: len(made)]
        assert stream.read(step) == b""

    def test_cut_off(self):
        compressor = zlib.compressobj(wbits=-15)
        whole = compressor.compress(CONTENT) + compressor.flush()
        made = InflateStream(whole[: len(whole) // 2], -15).read(len(CONTENT))
        assert 0 < len(made) < len(CONTENT)
        assert CONTENT.startswith(made)

    def test_damage(self):
        with pytest.raises(zlib.error, match="header"):
            inflate(b"nothing that gzip wrote", wbits=31, size=10)
        with pytest.raises(zlib.error, match="incomplete"):
            inflate(gzip.compress(CONTENT)[:-20], wbits=31, size=10)
        with pytest.raises(zlib.error, match="block type"):
            InflateStream(b"\xff\xff\xff", -15).read(10)
