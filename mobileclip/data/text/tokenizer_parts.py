"""Refuses parts of an untrusted `tokenizer.json` on which `tokenizers` would hang or use up the memory.

All else is left to the library, whose errors and panics are told as errors. Measured with 0.22, on files of up to 32
MiB that are complete otherwise:

- it hangs on patterns that try over and over, on hundreds of thousands of parts, of added tokens and of long words, on
  words of any length in a WordPiece model, on tokens of a Unigram model that are thousands of letters long, on long
  prefixes of byte pairs;
- it takes gigabytes, and ends the process, for texts that grow: replacements longer than what they replace, bytes as
  letters over and over, long texts in front, tables that map to long texts, added tokens of megabytes; and for a table
  of a normaliser that claims more bytes than it has.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mobileclip.storage import printable

START, END = "<start_of_text>", "<end_of_text>"

# The published pattern of CLIP ignores case in the property classes too, and by that loses the one mark (combining iota
# below, U+0345) whose upper case is a letter: it is neither a letter nor anything else, and is dropped.
SPLIT = START + "|" + END + r"|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
APOSTROPHES, QUOTES, LAST_SIGMA = r"[\x{2bc}\x{2018}-\x{201b}]", r"[\x{201c}-\x{201f}]", r"(?<=\p{L})Σ(?!\p{L})"

PUNCTUATION = r"[!-/:-@\[-`{-~]"

PATTERNS = frozenset(
    {
        PUNCTUATION,
        # Of CLIP's byte pairs as they are written here.
        SPLIT,
        APOSTROPHES,
        QUOTES,
        LAST_SIGMA,
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

_MAX_TOKENS, _MAX_CHARACTERS, _MAX_ADDED = 1 << 19, 1 << 23, 1 << 14
_MAX_TEXT, _MAX_WORD, _MAX_PARTS, _LONGEST_MAPPED = 512, 1000, 16, 64
# What cannot make a text longer; everything else stands once in a place.
_REPEATABLE = ("Replace", "Sequence", "Split", "Strip", "CharDelimiterSplit")
_CHARSMAP = "precompiled_charsmap"
_SHOWN = 60


def check_parts(value: Any) -> None:
    """Raise if a parsed `tokenizer.json` holds what the library hangs on, or takes all memory for.

    Args:
        value: from `parse_json`.

    Raises:
        ValueError: naming the part and what is wrong with it.
    """
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict):
        raise ValueError("it holds no model")
    _check_model(model)
    rest = [*value.items(), *model.items()]
    for name, part in (one for one in rest if one[0] not in ("model", "vocab", "merges")):
        longest = max((len(one) for one in _values(part) if isinstance(one, str)), default=0)
        if longest > _MAX_TEXT:
            raise ValueError(f"{printable(name[:_SHOWN])} holds a text of {longest:,} characters, beyond {_MAX_TEXT}")
    num_added = len(added) if isinstance(added := value.get("added_tokens"), list) else 0
    if num_added > _MAX_ADDED:
        raise ValueError(f"added_tokens holds {num_added:,} tokens, and up to {_MAX_ADDED:,} are read")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        _check_place(value.get(name), name)


def _check_model(model: dict[str, Any]) -> None:
    """Check the sizes of a model, and that it gives a text the same ids each time."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry]
    tokens = [token for token in vocabulary or () if isinstance(token, str)]
    longest, total = max(map(len, tokens), default=0), sum(map(len, tokens))
    if len(tokens) > _MAX_TOKENS or longest > _MAX_TEXT or total > _MAX_CHARACTERS:
        raise ValueError(
            f"its vocabulary has {len(tokens):,} tokens of up to {longest:,} characters, {total:,} in all; up to "
            f"{_MAX_TOKENS:,} of {_MAX_TEXT} are read, {_MAX_CHARACTERS:,} in all"
        )
    most = model.get("max_input_chars_per_word")
    if isinstance(most, int) and most > _MAX_WORD:
        raise ValueError(f"max_input_chars_per_word is {most}, and at most {_MAX_WORD:,} are read")
    if model.get("dropout"):
        raise ValueError("dropout is not 0: a text would have other ids each time; set it to null")


def _check_place(part: Any, name: str) -> None:
    """Check the parts of one place, and those inside: how many there are, and that no text grows without end."""
    kinds: Counter[str] = Counter()
    for one in _values(part):
        if not isinstance(one, dict):
            continue
        if one.keys() <= {"Regex", "String"}:
            pattern = one.get("Regex")
            if isinstance(pattern, str) and pattern not in PATTERNS:
                raise ValueError(
                    f"{name} has the regular expression {_shown(pattern)}, which is of none of the published "
                    "tokenizers that are known here: it might never end. Split by String, ByteLevel, Punctuation, "
                    "Digits or Whitespace"
                )
            continue
        kinds[str(one.get("type"))] += 1
        pattern, content = one.get("pattern"), one.get("content")
        replaced = pattern.get("String", "x") if isinstance(pattern, dict) else None
        if isinstance(replaced, str) and isinstance(content, str) and len(content) > len(replaced):
            raise ValueError(f"{name} Replace puts in more than it takes out, so that texts could grow without end")
        if isinstance(one.get(_CHARSMAP), str):
            _check_charsmap(one[_CHARSMAP], name)
    if kinds.total() > _MAX_PARTS:
        raise ValueError(f"{name} has {kinds.total()} parts, and up to {_MAX_PARTS} are read")
    twice = next((kind for kind, count in kinds.items() if count > 1 and kind not in _REPEATABLE), None)
    if twice is not None:
        raise ValueError(f"{name} has {_shown(twice)} more than once")


def _check_charsmap(value: str, name: str) -> None:
    """Check the table of a sentencepiece normaliser: it has the bytes that it claims, and its texts are short."""
    try:
        data = base64.b64decode(value)
    except (binascii.Error, ValueError):
        return  # the library says so
    num_bytes = int.from_bytes(data[:4], "little")
    longest = max(map(len, data[4 + num_bytes :].split(b"\0")))
    if num_bytes > len(data) - 4 or longest > _LONGEST_MAPPED:
        raise ValueError(
            f"{name} has a table of sentencepiece that claims {num_bytes:,} of its {len(data):,} bytes, and maps to "
            f"texts of up to {longest:,} bytes; up to {_LONGEST_MAPPED} are read"
        )


def _values(value: Any) -> Iterator[Any]:
    """Yield everything within a value, itself included, but the table of a normaliser."""
    waiting = [value]
    for one in waiting:
        yield one
        if isinstance(one, dict):
            waiting += (item for key, item in one.items() if key != _CHARSMAP)
        elif isinstance(one, list):
            waiting += one


def _shown(value: Any) -> str:
    return printable(repr(value)[:_SHOWN])
