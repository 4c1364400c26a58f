"""JSON from anyone: bounded, finite, without duplicate keys, and a ValueError whatever is wrong with it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_CHARACTERS = 1 << 26
_MAX_DIGITS = 40


def parse_json(text: str | bytes, *, max_characters: int = MAX_CHARACTERS) -> Any:
    """Return the value that a JSON text holds.

    Args:
        text: one JSON value; bytes are UTF-8, UTF-16 or UTF-32, as JSON allows.
        max_characters: longest text that is read, in characters or bytes.

    Raises:
        ValueError: if it is no JSON, longer than that, nested too deeply, has a key twice in one object, or a number
            that is NaN, infinite or of more than 40 digits.
    """
    if len(text) > max_characters:
        raise ValueError(f"it has {len(text):,} characters, and at most {max_characters:,} are read")
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON has")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits, and at most {_MAX_DIGITS} are read")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 1000 else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
