"""Ids of a `tokenizer.json`: those of the library that wrote it, for tokenizers of every kind."""

import copy
import hashlib
import json
import pickle
import time
from functools import cache

import attrs
import pytest
import tokenizers
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.data import Tokenizer, read_text_input
from mobileclip.data.text.tokenizer_file import PATTERNS
from mobileclip.inputs import TextInput
from mobileclip.serialization import from_json, to_json
from tests.data.tokenizer_files import KINDS, SENTENCES, TEXTS
from tests.errors import fails

ALL = pytest.mark.parametrize("kind", KINDS)
SPECIAL = {
    "bert": {"start_id": 2, "end_id": 3, "pad_id": 0},
    "t5": {"start_id": None, "end_id": 1, "pad_id": 0},
    "gpt": {"start_id": 0, "end_id": 1, "pad_id": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers")
    for name, kind in KINDS.items():
        kind().save(str(path / f"{name}.json"))
    return path


@cache
def ours(folder, kind, length):
    return Tokenizer(read_text_input(folder / f"{kind}.json", context_length=length))


@cache
def reference(folder, kind, length):
    """The library itself, cut and padded, or as it is."""
    made = tokenizers.Tokenizer.from_file(str(folder / f"{kind}.json"))
    if length is not None:
        made.enable_truncation(length)
        made.enable_padding(length=length, pad_id=SPECIAL[kind]["pad_id"], pad_token="the id alone counts")
    return made


@ALL
@pytest.mark.parametrize("length", [3, 12, 77])
def test_ids_are_the_librarys(folder, kind, length):
    tokenizer, made = ours(folder, kind, length), reference(folder, kind, length)
    ids = tokenizer(TEXTS)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [made.encode(text).ids for text in TEXTS]
    assert tokenizer(SENTENCES[0]).tolist() == ids[:1].tolist()
    assert tokenizer([]).shape == (0, length)


@ALL
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_ids_of_any_text_are_the_librarys(folder, kind, text):
    tokenizer = ours(folder, kind, 12)
    assert tokenizer(text).tolist() == [reference(folder, kind, 12).encode(text).ids]
    assert tokenizer.encode(text) == reference(folder, kind, None).encode(text, add_special_tokens=False).ids


@ALL
def test_the_contract_tells_what_stands_around_a_text_and_names_the_file(folder, kind):
    contract = read_text_input(folder / f"{kind}.json", context_length=12)
    assert {name: getattr(contract, name) for name in SPECIAL[kind]} == SPECIAL[kind]
    assert contract.pooled_id == contract.end_id
    assert contract.vocab_size == reference(folder, kind, None).get_vocab_size()
    assert contract.tokenizer.sha256 == hashlib.sha256((folder / f"{kind}.json").read_bytes()).hexdigest()
    assert (Tokenizer(contract)(TEXTS) == contract.end_id).any(1).all()
    text = to_json(contract)
    assert len(text) < 250
    named = from_json(text, TextInput)
    assert named == contract
    assert hash(named) == hash(contract)
    assert named.tokenizer.content is None
    with fails(ValueError, contract.tokenizer.sha256[:12]):
        Tokenizer(named)


@ALL
def test_decode_copies_pickles_and_what_to_json_writes(folder, kind):
    tokenizer, text = ours(folder, kind, 77), "a photo of a cat on the grass"
    assert tokenizer.decode(tokenizer(text)[0]) == text
    with fails(ValueError):
        tokenizer.decode([tokenizer.vocab_size])
    rows = tokenizer(TEXTS).tolist()
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert twin == tokenizer
        assert twin(TEXTS).tolist() == rows
    whole = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert [whole.encode(text).ids for text in TEXTS] == rows


def test_what_the_file_says_of_cutting_and_padding_is_overridden(folder, tmp_path):
    made = tokenizers.Tokenizer.from_file(str(folder / "bert.json"))
    made.enable_truncation(5, direction="left")
    made.enable_padding(length=9, direction="left", pad_id=4, pad_token="[MASK]")
    made.save(str(tmp_path / "t.json"))
    contract = read_text_input(tmp_path / "t.json", context_length=12)
    assert contract.pad_id == 4
    rows = Tokenizer(contract)(TEXTS)
    assert rows.where(rows != 4, 0).tolist() == ours(folder, "bert", 12)(TEXTS).tolist()


def test_halves_of_characters_are_read_as_unknown_ones(folder):
    tokenizer = ours(folder, "gpt", 12)
    assert tokenizer(["a \ud800 b", "\ud83d\ude00"]).tolist() == tokenizer(["a \ufffd b", "😀"]).tolist()


def test_a_contract_may_have_more_ids_than_its_file(folder):
    contract = read_text_input(folder / "bert.json", context_length=12)
    wider = Tokenizer(attrs.evolve(contract, vocab_size=512))
    assert wider(TEXTS).tolist() == ours(folder, "bert", 12)(TEXTS).tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *((change, ("2", "3")) for change in ({"start_id": 4}, {"start_id": None}, {"end_id": 4})),
        *(({name: 5000}, (name, "5000")) for name in ("start_id", "end_id")),
        ({"sha256": "f" * 63}, ()),
        ({"sha256": "f" * 64}, ()),
        ({"content": "{}"}, ()),
    ],
)
def test_a_contract_that_says_otherwise_than_its_file_is_refused(folder, changes, words):
    contract = read_text_input(folder / "bert.json")
    with fails(ValueError, *words):
        Tokenizer(attrs.evolve(contract, tokenizer=attrs.evolve(contract.tokenizer, **changes)))
    with fails(ValueError, str(contract.vocab_size - 1)):
        Tokenizer(attrs.evolve(contract, vocab_size=contract.vocab_size - 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"post_processor": None}, ()),
        ({"post_processor": {"type": "BertProcessing", "sep": ["[UNK]", 1], "cls": ["[CLS]", 2]}}, ("unknown",)),
        ({"post_processor": {"type": "BertProcessing", "sep": ["a", 20], "cls": ["[CLS]", 2]}}, ("words",)),
        ({"added_tokens": []}, ("words",)),
        # A table whose entries point nowhere: the library's panic is an error like any other.
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAQAAP" + "///3" * 3 + "//38AAAA"}}, ()),
    ],
    ids=["no end", "the unknown as end", "a word as end", "an end that is not special", "a table to nowhere"],
)
def test_a_tokenizer_with_which_towers_would_pool_elsewhere_is_refused(tmp_path, changes, words):
    (tmp_path / "tokenizer.json").write_text(json.dumps({**json.loads(KINDS["bert"]().to_str()), **changes}))
    with fails(ValueError, *words):
        read_text_input(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["a", " ", "\n", "1", "'", "ab 1'\n", "!", "é", "\r\n ", "A!"])
def test_known_patterns_take_time_in_proportion(text):
    """One that does not either takes for ever with a text of this length, or stops at the library's limit: an error."""
    long = text * (100_000 // len(text))
    for pattern in PATTERNS:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        start = time.perf_counter()
        assert "".join(piece for piece, _ in split.pre_tokenize_str(long)) == long
        assert time.perf_counter() - start < 20
        assert not split.pre_tokenize_str("")
