"""Strict types for specs and bounded parsing of JSON.

This module contains the checks that all specs and files share.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import attrs

JSON = "json"
NOT_IN_JSON = {JSON: "never"}
"""Metadata of a field that JSON omits; specs read from JSON get the field's default."""

_MAX_INTEGER = 1 << 64
_SHOWN = 80


def strict(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Check field values against annotations, for classes with `@attrs.frozen(field_transformer=strict)`.

    The check covers fields annotated as numbers, booleans, strings, literals, and unions or tuples of these types, and
    runs before the fields' own validators. A value of the wrong type raises a ValueError that names the field.
    """
    del cls
    return [
        field
        if isinstance(field.validator, _Annotated)
        else field.evolve(validator=_Annotated(field.validator))  # inherited fields are checked already
        for field in fields
    ]


def fitting(value: Any, annotation: Any) -> Any:
    """Return `value` if it matches an annotation, with an integer converted to a float where a float is expected.

    Args:
        value: any value.
        annotation: `int`, `float`, `str`, `bool`, a `Literal`, or a union or tuple of these; any other annotation
            accepts every value.

    Raises:
        ValueError: if the value has the wrong type, is not finite, or is an integer of more than 64 bits; the message
            names the expected type.
    """
    check = _SCALARS.get(annotation)
    if check is not None:
        return check(value)
    origin = get_origin(annotation)
    if origin is Literal:
        return _literal(value, get_args(annotation))
    if origin in (Union, UnionType):
        return _one_of(value, get_args(annotation))
    if origin is tuple:
        return _tuple(value, get_args(annotation))
    if annotation is NoneType and value is not None:
        raise _refusal(value, "null")
    return value


@attrs.frozen(eq=False)
class _Annotated:
    """A validator that checks a value against its field's annotation, then with the field's own validator."""

    then: Callable[[Any, attrs.Attribute[Any], Any], Any] | None

    def __call__(self, instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        try:
            fitting(value, _annotations(cast("Hashable", type(instance)))[attribute.name])
        except ValueError as error:
            raise ValueError(f"{attribute.name!r} of {type(instance).__name__}: {error}") from None
        if self.then is not None:
            self.then(instance, attribute, value)


@lru_cache(maxsize=1024)
def _annotations(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refusal(value, "an integer")
    if abs(value) > _MAX_INTEGER:
        raise ValueError(f"an integer of {value.bit_length()} bits is too large")
    return value


def _float(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _refusal(value, "a number")
    if isinstance(value, int):
        return float(_integer(value))
    if not math.isfinite(value):
        raise _refusal(value, "a finite number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _refusal(value, "a string")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(value, "true or false")
    return value


def _literal(value: Any, choices: tuple[Any, ...]) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _refusal(value, f"one of {', '.join(map(repr, choices))}")
    return value


def _one_of(value: Any, annotations: tuple[Any, ...]) -> Any:
    if value is None and NoneType in annotations:
        return None
    # If both int and float are allowed, an int stays an int.
    order = sorted((each for each in annotations if each is not NoneType), key=lambda each: each is float)
    reasons = []
    for annotation in order:
        try:
            return fitting(value, annotation)
        except ValueError as error:  # noqa: PERF203  a union has few members
            reasons.append(str(error))
    raise ValueError("; or ".join(reasons))


def _tuple(value: Any, annotations: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise _refusal(value, "a tuple")
    of_any_length = len(annotations) == 2 and annotations[1] is ...
    if not of_any_length and len(value) != len(annotations):
        raise ValueError(f"must have {len(annotations)} values, but has {len(value)}")
    kinds = annotations[:1] * len(value) if of_any_length else annotations
    index = 0
    try:
        for index, (item, kind) in enumerate(zip(value, kinds, strict=True)):  # noqa: B007  for the message
            fitting(item, kind)
    except ValueError as error:
        raise ValueError(f"value {index} {error}") from None
    return value


def _refusal(value: Any, expected: str) -> ValueError:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer with thousands of digits, or a recursive container
        shown = "something"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return ValueError(f"must be {expected}, but is {shown} ({type(value).__name__})")


_SCALARS: dict[Any, Callable[[Any], Any]] = {int: _integer, float: _float, str: _text, bool: _boolean}


MAX_CHARACTERS = 1 << 26
_MAX_DIGITS = 40


def parse_json(text: str | bytes, *, max_characters: int = MAX_CHARACTERS) -> Any:
    """Return the value of a JSON text.

    Args:
        text: one JSON value; bytes are UTF-8, UTF-16 or UTF-32, as JSON allows.
        max_characters: maximum length of the text, in characters or bytes.

    Raises:
        ValueError: if the text is not JSON, is too long or too deeply nested, repeats a key in an object, or has a
            number that is NaN, infinite or longer than 40 digits.
    """
    if len(text) > max_characters:
        raise ValueError(f"the JSON has {len(text):,} characters, but the maximum is {max_characters:,}")
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_int=_short_integer, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _short_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits, but the maximum is {_MAX_DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 1000 else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


_END = re.compile(r"\r\n|\r|\n")


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text without the line ends `\n`, `\r\n` or `\r`.

    U+2028, U+0085, form feeds and similar characters do not end a line: JSON, file names and captions contain them.

    Examples:
        >>> split_lines("one\u2028line\ntwo\n")
        ['one\u2028line', 'two']
    """
    found = _END.split(text)
    return found if found[-1] else found[:-1]


def repeated(names: Iterable[str]) -> list[str]:
    """Return each name that occurs more than once, sorted, in time proportional to the number of names."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
