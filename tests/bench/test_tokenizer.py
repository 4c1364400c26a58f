"""Throughput of the tokenizer on 50,000 distinct captions, beside open_clip's: `pytest --benchmark-only`."""

from __future__ import annotations

import pytest

from mobileclip.data import Tokenizer
from mobileclip.data.text import tokenizer as tokenizer_module
from tests.bench.captions import captions
from tests.lazily import lazily

theirs = lazily("open_clip.tokenizer")
NUM_CAPTIONS = 50_000


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return captions(NUM_CAPTIONS)


def _forget_words() -> None:
    tokenizer_module._byte_pairs.cache_clear()
    Tokenizer()("the build of the vocabulary is not what is measured")


def test_ours(benchmark, texts):
    ids = benchmark.pedantic(Tokenizer(), args=(texts,), setup=_forget_words, rounds=5)
    assert ids.shape == (NUM_CAPTIONS, 77)


def test_ours_one_at_a_time(benchmark, texts):
    tokenizer = Tokenizer()
    benchmark.pedantic(lambda: [tokenizer(text) for text in texts[:5000]], setup=_forget_words, rounds=5)


def test_open_clip(benchmark, texts):
    def fresh() -> tuple[tuple[object, list[str]], dict[str, object]]:
        return (theirs.SimpleTokenizer(), texts), {}

    ids = benchmark.pedantic(lambda tokenizer, texts: tokenizer(texts), setup=fresh, rounds=5)
    assert ids.shape == (NUM_CAPTIONS, 77)
