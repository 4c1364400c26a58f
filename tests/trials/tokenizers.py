"""Files of tokenizers from strangers: bombs, patterns without end, tables that point nowhere, parts of wrong kinds."""

from __future__ import annotations

import base64
import copy
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs

from mobileclip import ImageTextModel
from mobileclip.data import Tokenizer, read_text_input
from mobileclip.encoders import load_model, save_model
from tests.data.tokenizer_files import KINDS, TEXTS
from tests.encoders.small import SMALL, randomised
from tests.trials.checkpoints import LENGTH
from tests.trials.harness import Case, Outcome

HOSTILE = [*TEXTS, "a" * 300_000, "a " * 100_000, "\u0130\ufdfa\u5b57" * 50_000, "\ud800", "\0" * 100_000]
"""What a tokenizer that is accepted is given."""


@cache
def written(kind: str) -> str:
    """A tokenizer of a kind as its file holds it."""
    return KINDS[kind]().to_str()


def with_value(kind: str, path: tuple[str | int, ...], value: Any) -> str:
    """A tokenizer's JSON with something else in one place."""
    whole = copy.deepcopy(json.loads(written(kind)))
    place = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(whole)


def refused(folder: Path, text: str | bytes | Callable[[], str]) -> Outcome:
    """Read a file; that it can be used is wrong."""
    path = write(folder, text)
    contract = read_text_input(path)
    raise AssertionError(f"it was read as {contract}")


def used(folder: Path, text: str | bytes | Callable[[], str]) -> Outcome:
    """Read a file and make ids, which end where they should, or are refused."""
    tokenizer = Tokenizer(read_text_input(write(folder, text), context_length=16))
    contract = tokenizer.text_input
    rows = tokenizer(HOSTILE)
    assert rows.shape == (len(HOSTILE), 16)
    assert (rows == contract.end_id).any(1).all()
    assert int(rows.max()) < contract.vocab_size
    return "accepted"


def write(folder: Path, text: str | bytes | Callable[[], str]) -> Path:
    path = folder / "tokenizer.json"
    text = text() if callable(text) else text
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    return path


def charsmap(units: list[int], texts: bytes) -> str:
    table = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(table)) + table + texts).decode()


def mapping(units: list[int], texts: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": charsmap(units, texts)}


def several(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(parts)}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def nested(kind: str, depth: int) -> Any:
    part: Any = {"type": "NFC"} if kind == "normalizers" else {"type": "Whitespace"}
    for _ in range(depth):
        part = {"type": "Sequence", kind: [part]}
    return part


DOUBLING = several("normalizers", *[replace({"String": "a"}, "aa")] * 40)
LONG = "x" * 600
NORMALIZERS: dict[str, Any] = {
    "doubling": DOUBLING,
    "a part that doubles": replace({"String": "a"}, "aa"),
    "a pattern that matches nothing": replace({"Regex": "x*"}, "y"),
    "an empty text to replace": replace({"String": ""}, "y"),
    "a pattern that explodes": replace({"Regex": "(a+)+$"}, " "),
    "a long text in front": {"type": "Prepend", "prepend": "a" * (20 << 20)},
    "a letter that becomes 512": replace({"String": "a"}, "x" * 512),
    "100,000 parts": several("normalizers", *[{"type": "Lowercase"}] * 100_000),
    "bytes as letters over and over": several("normalizers", *[{"type": "ByteLevel"}] * 12),
    "a hundred parts": several("normalizers", *[replace({"String": "a"}, "b")] * 100),
    "nested": nested("normalizers", 90),
    "no charsmap": {"type": "Precompiled", "precompiled_charsmap": None},
    "charsmap of nothing": {"type": "Precompiled", "precompiled_charsmap": ""},
    "charsmap that is no base64": {"type": "Precompiled", "precompiled_charsmap": "%%%"},
    "charsmap that is cut": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"},
    "charsmap that claims 4 GiB": {"type": "Precompiled", "precompiled_charsmap": "/" * 64},
    "charsmap to long texts": mapping([0] * 256, b"a" * 100_000),
    "charsmap behind its end": mapping([2**32 - 1] * 8, b"a\0"),
    "charsmap twice": several("normalizers", *[mapping([0] * 256, b"a\0")] * 2),
    "unknown": {"type": "Python", "code": "import os"},
    "without a type": {"lowercase": True},
    "a list": [{"type": "NFC"}],
    "a text": "NFC",
    "a number as a flag": {"type": "Strip", "strip_left": 1, "strip_right": True},
}  # fmt: skip
PRE_TOKENIZERS: dict[str, Any] = {
    "a pattern that explodes": split("(a+)+$"),
    "a pattern that looks back": split(r"(\w+)\1+$"),
    "a pattern of patterns": split("(?:(?:(?:(?:a{1000}){1000}){1000}){1000})"),
    "a pattern of a million brackets": split("(" * 1_000_000 + ")" * 1_000_000),
    "a pattern that is no text": split(3),  # type: ignore[arg-type]
    "nested": nested("pretokenizers", 90),
    "a delimiter of no character": {"type": "CharDelimiterSplit", "delimiter": ""},
    "a long replacement": {"type": "Metaspace", "replacement": "a" * 1000, "prepend_scheme": "always", "split": True},
    "bytes over and over": several(
        "pretokenizers",
        *[{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}] * 12,
    ),
    "pieces of no length": {"type": "FixedLength", "length": 0},
    "100,000 parts": several("pretokenizers", *[{"type": "Digits", "individual_digits": True}] * 100_000),
    "another behaviour": {"type": "Punctuation", "behavior": "Explode"},
}  # fmt: skip
SPECIAL = {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}
POST_PROCESSORS: dict[str, Any] = {
    "none, so that no text ends": None,
    "a template of nothing": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    "a template with an unknown token": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[X]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    "a text many times": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000,
        "pair": [],
        "special_tokens": {"[SEP]": SPECIAL},
    },
    "a token of a million ids": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"[SEP]": {**SPECIAL, "ids": [3] * 100_000}},
    },
    "an end token that is a word": {"type": "BertProcessing", "sep": ["a", 20], "cls": ["[CLS]", 2]},
    "an end token that is unknown": {"type": "BertProcessing", "sep": ["[UNK]", 1], "cls": ["[CLS]", 2]},
    "an end token behind all ids": {"type": "BertProcessing", "sep": ["[SEP]", 2**21], "cls": ["[CLS]", 2]},
    "an id below zero": {"type": "BertProcessing", "sep": ["[SEP]", -3], "cls": ["[CLS]", 2]},
    "an id of 400 digits": {"type": "BertProcessing", "sep": ["[SEP]", 10**39], "cls": ["[CLS]", 2]},
}
WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}
WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": WORDS,
}
PAIRS = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": WORDS,
    "merges": [],
}
LETTERS = {f"##{'a' * count}": count + 10 for count in range(1, 500)}
MODELS: dict[str, Any] = {
    "none": None,
    "unknown": {"type": "Lambda", "vocab": {"a": 0}},
    "without words": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {}},
    "words in a list": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": ["a"]},
    "ids that are texts": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": "0"}},
    "ids that are true": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": True}},
    "ids below zero": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": -1}},
    "ids of 2^32": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 2**32 - 1}},
    "nothing for what is unknown": WORD_PIECE | {"unk_token": "[X]"},
    "words of any length": WORD_PIECE | {"max_input_chars_per_word": 10**9, "vocab": {**WORDS, **LETTERS}},
    "a word of 600 letters": WORD_PIECE | {"vocab": {**WORDS, LONG: 6}},
    "one id for all words": WORD_PIECE | {"vocab": dict.fromkeys(WORDS, 0)},
    "a long prefix": PAIRS | {"continuing_subword_prefix": "#" * (20 << 20)},
    "a long suffix": PAIRS | {"end_of_word_suffix": "#" * (20 << 20)},
    "an id of 2^32 of a pair": PAIRS | {"vocab": {**WORDS, "ab": 2**32 - 1}, "merges": [["a", "b"]]},
    "words of thousands of letters": {
        "type": "Unigram", "unk_id": 0, "byte_fallback": False,
        "vocab": [["<unk>", 0.0], *(["a" * count, -1.0] for count in range(1, 5000))],
    },
    "pairs by chance": {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []},
    "pairs of what is not there": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a c"]},
    "pairs whose whole is not there": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
    "pairs of three": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a", "a"]]},
    "pairs that are numbers": {"type": "BPE", "vocab": {"a": 0}, "merges": [1, 2]},
    "pairs with a long prefix": {
        "type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0, "b": 1}, "merges": ["a b"],
    },
    "scores that are texts": {"type": "Unigram", "unk_id": 0, "vocab": [["a", "0"]]},
    "words without a score": {"type": "Unigram", "unk_id": 0, "vocab": [["a"]]},
    "an unknown word that is not there": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]},
    "no unknown word": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]},
    "no words": {"type": "Unigram", "unk_id": 0, "vocab": []},
}  # fmt: skip
FLAGS = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}
ADDED: dict[str, Any] = {
    "a token without characters": [{"id": 1, "content": "", **FLAGS}],
    "a token without content": [{"id": 1, **FLAGS}],
    "a token of 20 million letters": [{"id": 1, "content": "a" * 20_000_000, **FLAGS}],
    "many tokens": [{"id": 10 + number, "content": f"word {number}", **FLAGS} for number in range(150_000)],
    "tokens that are texts": ["[CLS]"],
    "an id of 2^40": [{"id": 2**40, "content": "a", **FLAGS}],
    "none, so that the end is a word": [],
}
FILES: dict[str, str | bytes | Callable[[], str]] = {
    "nothing": "",
    "no JSON": "vocab",
    "null": "null",
    "a list": "[]",
    "an empty object": "{}",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "no UTF-8": b'{"version": "\xff\xfe"}',
    "nested 100,000 deep": '{"model":' * 100_000,
    "lists nested 100,000 deep": '{"model":' + "[" * 100_000,
    "half of a file": lambda: written("bert")[: len(written("bert")) // 2],
    "a file twice": lambda: written("bert") * 2,
    "a key twice": lambda: written("bert").replace('"version"', '"model": {}, "version"', 1),
    "NaN": lambda: written("t5").replace("0.0", "NaN", 1),
    "40 MiB of spaces": " " * (40 << 20),
    "30 MiB of empty lists": lambda: '{"model": [' + "[]," * (10 << 20) + "[]]}",
    "30 MiB of brackets in one row": lambda: "[" + "{}," * (10 << 20) + "{}]",
    "8 MiB of one word": lambda: with_value("bert", ("model", "vocab", "y" * (8 << 20)), 9),
    "many words of 30 letters": lambda: with_value(
        "bert", ("model", "vocab"), {"[UNK]": 1, **{f"{index:030}": index for index in range(500_000)}}
    ),
    "a surrogate in a word": lambda: with_value("bert", ("model", "vocab", "\ud800"), 9),
    "a million words": lambda: with_value(
        "t5", ("model", "vocab"), [["<unk>", 0.0], *([f"{index:x}", -1.0] for index in range(1_000_000))]
    ),
}
CUT = {"direction": "Left", "strategy": "LongestFirst"}
USED: dict[str, tuple[str, tuple[str | int, ...], Any]] = {
    "as it is, bert": ("bert", ("version",), "1.0"),
    "as it is, t5": ("t5", ("version",), "1.0"),
    "as it is, gpt": ("gpt", ("version",), "1.0"),
    "padding of 2^40": (
        "bert",
        ("padding",),
        {
            "strategy": {"Fixed": 2**40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 7,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
    ),
    "padding that is a text": ("bert", ("padding",), "left"),
    "padding with an id below zero": ("bert", ("padding",), {"pad_id": -1}),
    "cut at 2^60": ("bert", ("truncation",), {**CUT, "max_length": 2**60, "stride": 2**60}),
    "cut at nothing": ("gpt", ("truncation",), {**CUT, "max_length": 0, "stride": 9}),
    "characters of many": ("gpt", ("normalizer",), several("normalizers", {"type": "NFKD"}, {"type": "ByteLevel"})),
    "bytes as letters": ("gpt", ("normalizer",), {"type": "ByteLevel"}),
    "an unknown field": ("bert", ("normalizer",), {"type": "NFC", "more": 1}),
    "pieces of one letter": ("bert", ("pre_tokenizer",), {"type": "FixedLength", "length": 1}),
    "charsmap of zeros": ("t5", ("normalizer",), mapping([0] * 256, b"a\0")),
    "charsmap of ones": ("t5", ("normalizer",), mapping([0x7FFFFFFF] * 256, b"a\0")),
    "replacing over and over": (
        "bert", ("normalizer",), several("normalizers", *[replace({"String": "a"}, "b")] * 15),
    ),
    "version of another time": ("bert", ("version",), "9.0"),
    "words that make words": ("t5", ("model", "vocab", 5), ["a" * 500, -0.5]),
    "scores of 1e300": ("t5", ("model", "vocab", 5), ["ab", 1e300]),
    "the longest word": ("bert", ("model", "max_input_chars_per_word"), 1000),
}  # fmt: skip


@cache
def own_file(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The header and numbers of a small checkpoint with a tokenizer of its own."""
    contract = read_text_input(write(folder, written("bert")), context_length=12)
    spec = attrs.evolve(SMALL, text=attrs.evolve(SMALL.text, input=contract))
    path = folder / "m.safetensors"
    save_model(randomised(spec), path)
    data = path.read_bytes()
    (length,) = LENGTH.unpack(data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def loaded(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Outcome:
    """Load a checkpoint whose metadata were changed, with its tokenizer."""
    header, numbers = copy.deepcopy(own_file(folder))
    edit(header["__metadata__"])
    text = json.dumps(header).encode()
    path = folder / "changed.safetensors"
    path.write_bytes(LENGTH.pack(len(text)) + text + numbers)
    model = load_model(path)
    ImageTextModel(model)
    raise AssertionError("it was loaded")


def stored(data: bytes) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.update({"mobileclip.tokenizer": base64.b64encode(zlib.compress(data, 9)).decode()})


def spec_with(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def edit(metadata: dict[str, Any]) -> None:
        assert old in metadata["mobileclip.spec"], metadata["mobileclip.spec"]
        metadata["mobileclip.spec"] = metadata["mobileclip.spec"].replace(old, new)

    return edit


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no tokenizer": lambda metadata: metadata.pop("mobileclip.tokenizer"),
    "a tokenizer that is no base64": lambda metadata: metadata.update({"mobileclip.tokenizer": "%%"}),
    "a tokenizer that is not compressed": lambda metadata: metadata.update({"mobileclip.tokenizer": "AAAA"}),
    "another tokenizer": stored(b"{}"),
    "a tokenizer of 256 MiB": lambda metadata: metadata.update({"mobileclip.tokenizer": bomb()}),
    "a tokenizer that is no text": stored(b"\xff\xfe"),
    "another start": spec_with('"start_id": 2', '"start_id": 4'),
    "no start": spec_with('"start_id": 2', '"start_id": null'),
    "another end": spec_with('"end_id": 3', '"end_id": 4'),
    "an end behind all ids": spec_with('"end_id": 3', '"end_id": 4000'),
    "another hash": spec_with('"sha256": "', '"sha256": "0'),
    "a tokenizer in the spec": spec_with('"end_id": 3', '"end_id": 3, "content": "{}"'),
}


def many_words() -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"{index:012x}" for index in range(500_000))]
    return with_value("bert", ("model", "vocab"), {word: index for index, word in enumerate(words)})


def bomb() -> str:
    """Zeros, compressed: a thousandth of what they become."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(1 << 24)) for _ in range(16)]
    return base64.b64encode(b"".join([*parts, deflate.flush()])).decode()


def cases() -> Iterator[Case]:
    """Yield every file, part and checkpoint."""
    for name, text in FILES.items():
        yield Case(name=name, attempt=partial(refused, text=text))
    for place, values in (
        ("normalizer", NORMALIZERS),
        ("pre_tokenizer", PRE_TOKENIZERS),
        ("post_processor", POST_PROCESSORS),
        ("model", MODELS),
        ("added_tokens", ADDED),
    ):
        for name, value in values.items():
            yield Case(name=f"{place}: {name}", attempt=partial(refused, text=with_value("bert", (place,), value)))
    for name, (kind, path, value) in USED.items():
        yield Case(name=f"used: {name}", attempt=partial(used, text=with_value(kind, path, value)))
    # Larger than the vocabularies of published tokenizers, of which the largest have a quarter of a million.
    yield Case(name="used: 500,000 words", attempt=partial(used, text=many_words), seconds=60.0)
    for name, edit in CHECKPOINTS.items():
        yield Case(name=f"checkpoint: {name}", attempt=partial(loaded, edit=edit))
