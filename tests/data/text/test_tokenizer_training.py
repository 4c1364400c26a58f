"""Tokenizers that are trained here, and what reads them."""

import random

import pytest

from mobileclip.data import Tokenizer, read_text_input, train_tokenizer
from tests.errors import fails


def texts():
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdeéñöß漢字かなжд", k=drawn.randint(2, 7))) for _ in range(300)]
    return [" ".join(drawn.choices(words, k=3)) for _ in range(1500)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(texts(), vocab_size=500, kind=request.param))
    return read_text_input(path, context_length=24)


def test_texts_come_back_end_and_are_padded(trained):
    tokenizer = Tokenizer(trained)
    for text in texts()[:50]:
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text
    ids = tokenizer(["", texts()[0], "x " * 100])
    assert trained.vocab_size <= 500
    for row in ids.tolist():
        assert set(row[row.index(trained.end_id) + 1 :]) <= {trained.pad_id}
    assert ids[0, 0] == ids[2, -1] == trained.end_id
    # Capitals and widths are one.
    assert tokenizer.encode("\N{FULLWIDTH LATIN SMALL LETTER A}BÉ") == tokenizer.encode("abé")


def test_pairs_of_bytes_know_every_character_and_come_out_alike(tmp_path):
    content = train_tokenizer(texts(), vocab_size=400)
    assert content == train_tokenizer(iter(texts()), vocab_size=400)
    (tmp_path / "tokenizer.json").write_text(content)
    tokenizer = Tokenizer(read_text_input(tmp_path / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("\N{GRINNING FACE} ไทย")).strip() == "\N{GRINNING FACE} ไทย"


def test_capitals_may_stay():
    choices = {"texts": ["AB ab"] * 9, "vocab_size": 300}
    assert train_tokenizer(**choices, lowercase=False) != train_tokenizer(**choices)


@pytest.mark.parametrize("choices", [{"vocab_size": 400, "kind": "words"}, {"vocab_size": 100}])
def test_what_gives_no_tokenizer_is_refused(choices):
    with fails(ValueError):
        train_tokenizer(["a"], **choices)
