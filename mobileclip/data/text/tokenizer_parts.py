"""What a `tokenizer.json` of a stranger may hold: known parts, within bounds, before the library is asked to read it.

The library builds what a file says: patterns that never end, replacements that double a text at every step, tables that
are indexed beyond their end. So every part is one of those listed here, every text and list is bounded, and patterns
are those of published tokenizers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mobileclip.inputs import MAX_VOCABULARY
from mobileclip.storage import printable

PATTERNS = frozenset(
    {
        r"\s+",
        r"\s{2,}",
        r" {2,}",
        r"\s{2,}|[\n\r\t]",
        # GPT-2, CLIP, GPT-4 and Llama 3, Qwen 2.
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        *(
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
    }
)
"""Regular expressions of published tokenizers; each takes one character at least, and time in proportion to a text."""

_MAX_TOKENS, _MAX_TOKEN = 1 << 19, 512
_MAX_TABLE_BYTES = 1 << 23
_MAX_ADDED = 1 << 14
_MAX_ADDED_CHARACTERS = 1 << 18
_MAX_PARTS, _MAX_DEPTH = 16, 4
_MAX_WORD = 1000
_MAX_TEMPLATE = 8
_MAX_CHARSMAP_BYTES, _LONGEST_MAPPED = 1 << 20, 64
_SHOWN = 60

Check = Callable[[Any, str], None]


def check_parts(value: Any) -> None:
    """Raise unless a parsed `tokenizer.json` holds known parts alone, within bounds.

    Args:
        value: from `parse_json`.

    Raises:
        ValueError: naming the part and what is wrong with it.
    """
    _fields(value, "the file", _TOP)
    for name, kinds in (
        ("normalizer", _NORMALIZERS),
        ("pre_tokenizer", _PRE_TOKENIZERS),
        ("post_processor", _POST_PROCESSORS),
        ("decoder", _DECODERS),
    ):
        if value.get(name) is not None:
            _check_kinds(value[name], name, kinds)
    model = value.get("model")
    _part(model, "model", _MODELS)
    _check_vocabulary(model)


def _check_kinds(part: Any, name: str, kinds: Mapping[str, Mapping[str, Check]]) -> None:
    """Check a part and those inside; what can make a text longer stands there once."""
    found = list(_flat(part, name, kinds, depth=0))
    if len(found) > _MAX_PARTS:
        raise ValueError(f"{name} has {len(found)} parts, and up to {_MAX_PARTS} are read")
    twice = next((kind for kind in found if kind not in _REPEATABLE and found.count(kind) > 1), None)
    if twice is not None:
        raise ValueError(f"{name} has {twice} more than once")


def _flat(part: Any, name: str, kinds: Mapping[str, Mapping[str, Check]], *, depth: int) -> list[str]:
    """Return the kinds of a part and of those inside, each checked."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {_MAX_DEPTH} deep")
    kind = _part(part, name, kinds)
    if kind == "Replace" and len(part.get("content", "")) > max(1, len(part.get("pattern", {}).get("String", ""))):
        raise ValueError(f"{name} Replace puts in more than it takes out, so that texts could grow without end")
    inside = next((value for key, value in part.items() if key in _LISTS), None) if kind == "Sequence" else None
    if inside is None:
        return [kind]
    found = []
    for one in inside[: _MAX_PARTS + 1]:
        found += _flat(one, name, kinds, depth=depth + 1)
    return found


def _part(part: Any, name: str, kinds: Mapping[str, Mapping[str, Check]]) -> str:
    """Check the fields of one part, and return its kind."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{name} is {_shown(kind)}, and known are {', '.join(sorted(kinds))}")
    _fields(part, f"{name} {kind}", {"type": _text, **kinds[kind]})
    return kind


def _fields(value: Any, name: str, fields: Mapping[str, Check]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    for key, item in value.items():
        if key not in fields:
            raise ValueError(f"{name} has {_shown(key)}, which is not known; known are {', '.join(sorted(fields))}")
        fields[key](item, f"{key} of {name}")


def _check_vocabulary(model: dict[str, Any]) -> None:
    """Check the tokens and ids of a model: what it names is there, and everything is bounded."""
    vocabulary, kind = model.get("vocab"), model["type"]
    expected: type[Any] = list if kind == "Unigram" else dict
    if not isinstance(vocabulary, expected) or not vocabulary:
        raise ValueError(f"vocab of model {kind} is no {'list of tokens and scores' if kind == 'Unigram' else 'table'}")
    if len(vocabulary) > _MAX_TOKENS:
        raise ValueError(f"vocab of model {kind} has {len(vocabulary):,} tokens, and up to {_MAX_TOKENS:,} are read")
    if kind == "Unigram":
        tokens = [_scored(entry) for entry in vocabulary]
    else:
        tokens = list(vocabulary)
        for index in vocabulary.values():
            _id(index, f"an id in vocab of model {kind}")
    _check_texts(tokens, f"vocab of model {kind}", _MAX_TABLE_BYTES)
    if kind == "Unigram":
        unknown = model.get("unk_id")
        if unknown is None or unknown >= len(vocabulary):
            raise ValueError("model Unigram names no token for what is unknown: unk_id is none of its tokens")
    elif (kind == "WordPiece" or model.get("unk_token") is not None) and model.get("unk_token") not in vocabulary:
        raise ValueError(f"model {kind} names no token for what is unknown: unk_token is none of its tokens")
    for merge in model.get("merges", ()):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(_is_in(part, vocabulary) for part in parts):
            raise ValueError(f"merges of model {kind} holds {_shown(merge)}, which is no pair of its tokens")


def _is_in(part: Any, vocabulary: dict[str, Any]) -> bool:
    return isinstance(part, str) and part in vocabulary


def _scored(entry: Any) -> Any:
    if not isinstance(entry, list) or len(entry) != 2 or type(entry[1]) not in (int, float):
        raise ValueError(f"vocab of model Unigram holds {_shown(entry)}, which is no token with its score")
    return entry[0]


def _check_texts(texts: list[Any], name: str, most: int) -> None:
    total = 0
    for text in texts:
        if not isinstance(text, str) or len(text) > _MAX_TOKEN:
            raise ValueError(f"{name} holds {_shown(text)}, which is no token of up to {_MAX_TOKEN} characters")
        total += len(text)
    if total > most:
        raise ValueError(f"{name} has {total:,} characters, and up to {most:,} are read")


def _shown(value: Any) -> str:
    return printable(repr(value)[:_SHOWN] if not isinstance(value, (list, dict)) else type(value).__name__)


def _anything(value: Any, name: str) -> None:
    """Of fields that are replaced, or checked elsewhere."""
    del value, name


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TOKEN:
        raise ValueError(f"{name} is {_shown(value)}, expected a text of up to {_MAX_TOKEN} characters")


def _affix(value: Any, name: str) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > _MAX_TEMPLATE):
        raise ValueError(f"{name} is {_shown(value)}, expected a text of up to {_MAX_TEMPLATE} characters")


def _optional_text(value: Any, name: str) -> None:
    if value is not None:
        _text(value, name)


def _character(value: Any, name: str) -> None:
    if not isinstance(value, str) or len(value) != 1:
        raise ValueError(f"{name} is {_shown(value)}, expected one character")


def _boolean(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}, expected true or false")


def _optional_boolean(value: Any, name: str) -> None:
    if value is not None:
        _boolean(value, name)


def _whole(value: Any, name: str, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number from 0 to {most:,}")


def _id(value: Any, name: str) -> None:
    _whole(value, name, MAX_VOCABULARY - 1)


def _optional_id(value: Any, name: str) -> None:
    if value is not None:
        _id(value, name)


def _word_length(value: Any, name: str) -> None:
    _whole(value, name, _MAX_WORD)


def _small(value: Any, name: str) -> None:
    _whole(value, name, _MAX_TOKEN)


def _no_dropout(value: Any, name: str) -> None:
    if value is not None and value != 0:
        raise ValueError(f"{name} is {_shown(value)}: a text would have other ids each time; set it to null")


def _list(value: Any, name: str) -> None:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_shown(value)}, expected a list")


def _pattern(value: Any, name: str) -> None:
    kind, pattern = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (None, None)
    if kind == "Regex":
        if not isinstance(pattern, str) or pattern not in PATTERNS:
            raise ValueError(
                f"{name} is the regular expression {_shown(pattern)}, which is of none of the published tokenizers "
                "that are known here: it might never end. Split by String, ByteLevel, Punctuation, Digits or Whitespace"
            )
    elif kind != "String" or not isinstance(pattern, str) or not 0 < len(pattern) <= _MAX_TOKEN:
        raise ValueError(f"{name} is {_shown(value)}, expected a String that is not empty, or a Regex")


def _charsmap(value: Any, name: str) -> None:
    """Check the table of a sentencepiece normaliser: its texts are short, and no entry points behind its end."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    num_bytes = int.from_bytes(data[:4], "little")
    texts = data[4 + num_bytes :]
    if not 4 <= num_bytes <= min(_MAX_CHARSMAP_BYTES, len(data) - 4) or num_bytes % 4 or not texts:
        raise ValueError(f"{name} is no table of sentencepiece of up to {_MAX_CHARSMAP_BYTES:,} bytes")
    if len(texts) > _MAX_CHARSMAP_BYTES or max(map(len, texts.split(b"\0"))) > _LONGEST_MAPPED:
        raise ValueError(f"{name} maps to texts of more than {_LONGEST_MAPPED} bytes")
    units = np.frombuffer(data, dtype="<u4", count=num_bytes // 4, offset=4)
    # The highest bit marks a value, which is a place in the texts.
    values = units[units >> 31 == 1] & 0x7FFFFFFF
    if values.size and int(values.max()) >= len(texts):
        raise ValueError(f"{name} points behind its end")


def _template(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) > _MAX_TEMPLATE:
        raise ValueError(f"{name} is {_shown(value)}, expected a list of up to {_MAX_TEMPLATE} pieces")
    for piece in value:
        kind, fields = next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else (None, None)
        if kind not in {"SpecialToken", "Sequence"}:
            raise ValueError(f"{name} holds {_shown(piece)}, expected a SpecialToken or a Sequence")
        _fields(fields, f"a piece of {name}", {"id": _text, "type_id": _small})


def _special_tokens(value: Any, name: str) -> None:
    if not isinstance(value, dict) or len(value) > _MAX_TEMPLATE:
        raise ValueError(f"{name} is {_shown(value)}, expected a table of up to {_MAX_TEMPLATE} tokens")
    for token in value.values():
        _fields(token, f"a token in {name}", {"id": _text, "ids": _one_id, "tokens": _list})


def _one_id(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError(f"{name} is {_shown(value)}, expected a list of one id")
    _id(value[0], name)


def _named_id(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name} is {_shown(value)}, expected a token and its id")
    _text(value[0], name)
    _id(value[1], name)


def _added(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) > _MAX_ADDED:
        raise ValueError(f"{name} is {_shown(value)}, expected a list of up to {_MAX_ADDED:,} tokens")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _boolean)
    for token in value:
        _fields(token, f"a token in {name}", {"id": _id, "content": _text, **flags})
    _check_texts([token.get("content") for token in value], name, _MAX_ADDED_CHARACTERS)
    if not all(token["content"] for token in value):
        raise ValueError(f"{name} holds a token without characters")


_TOP: dict[str, Check] = {
    "version": _text,
    "added_tokens": _added,
    **dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"), _anything
    ),
}
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
_REPEATABLE = ("Replace", "Split", "Strip", "CharDelimiterSplit")
_BYTE_LEVEL: dict[str, Check] = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), _boolean)
_METASPACE: dict[str, Check] = {
    "replacement": _character,
    "str_rep": _character,
    "prepend_scheme": _text,
    **dict.fromkeys(("split", "add_prefix_space"), _boolean),
}
_NORMALIZERS: dict[str, dict[str, Check]] = {
    "BertNormalizer": {
        **dict.fromkeys(("clean_text", "handle_chinese_chars", "lowercase"), _boolean),
        "strip_accents": _optional_boolean,
    },
    **{kind: {} for kind in ("ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "StripAccents")},
    "Precompiled": {"precompiled_charsmap": _charsmap},
    "Prepend": {"prepend": _affix},
    "Replace": {"pattern": _pattern, "content": _text},
    "Sequence": {"normalizers": _list},
    "Strip": dict.fromkeys(("strip_left", "strip_right"), _boolean),
}
_PRE_TOKENIZERS: dict[str, dict[str, Check]] = {
    **{kind: {} for kind in ("BertPreTokenizer", "UnicodeScripts", "Whitespace", "WhitespaceSplit")},
    "ByteLevel": _BYTE_LEVEL,
    "CharDelimiterSplit": {"delimiter": _character},
    "Digits": {"individual_digits": _boolean},
    "Metaspace": _METASPACE,
    "Punctuation": {"behavior": _text},
    "Sequence": {"pretokenizers": _list},
    "Split": {"pattern": _pattern, "behavior": _text, "invert": _boolean},
}
_POST_PROCESSORS: dict[str, dict[str, Check]] = {
    "BertProcessing": {"sep": _named_id, "cls": _named_id},
    "ByteLevel": _BYTE_LEVEL,
    "RobertaProcessing": {
        **dict.fromkeys(("trim_offsets", "add_prefix_space"), _boolean),
        "sep": _named_id,
        "cls": _named_id,
    },
    "Sequence": {"processors": _list},
    "TemplateProcessing": {"single": _template, "pair": _template, "special_tokens": _special_tokens},
}
_DECODERS: dict[str, dict[str, Check]] = {
    "BPEDecoder": {"suffix": _text},
    "ByteFallback": {},
    "ByteLevel": _BYTE_LEVEL,
    "Fuse": {},
    "Metaspace": _METASPACE,
    "Replace": {"pattern": _pattern, "content": _text},
    "Sequence": {"decoders": _list},
    "Strip": {"content": _text, "start": _small, "stop": _small},
    "WordPiece": {"prefix": _text, "cleanup": _boolean},
}
_MODELS: dict[str, dict[str, Check]] = {
    "BPE": {
        "dropout": _no_dropout,
        "unk_token": _optional_text,
        "continuing_subword_prefix": _affix,
        "end_of_word_suffix": _affix,
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), _boolean),
        "vocab": _anything,
        "merges": _list,
    },
    "Unigram": {"unk_id": _optional_id, "vocab": _anything, "byte_fallback": _boolean},
    "WordPiece": {
        "unk_token": _text,
        "continuing_subword_prefix": _affix,
        "max_input_chars_per_word": _word_length,
        "vocab": _anything,
    },
}
