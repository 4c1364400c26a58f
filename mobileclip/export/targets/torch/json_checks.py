"""What a JSON text may hold, said in values: a check is a function that takes a value and the path to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mobileclip.storage import printable

Check = Callable[[Any, str], None]
_LARGEST = 2**63 - 1


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return the check of an object with these keys and no other."""
    known = {**required, **(optional or {})}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(value, path, "an object")
        if missing := required.keys() - value.keys():
            raise ValueError(f"{path} lacks {printable(min(missing))}")
        if unknown := value.keys() - known.keys():
            raise ValueError(f"{path} holds {printable(repr(min(unknown)))}, which is not known here")
        for key, item in value.items():
            known[key](item, f"{path}.{key}")

    return check


def union(**members: Check) -> Check:
    """Return the check of an object with one of these keys."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= members.keys():
            raise _wrong(value, path, f"one of {', '.join(members)}")
        ((key, item),) = value.items()
        members[key](item, f"{path}.{key}")

    return check


def array(item: Check, *, most: int) -> Check:
    """Return the check of a list."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _wrong(value, path, f"a list of up to {most}")
        for index, one in enumerate(value):
            item(one, f"{path}[{index}]")

    return check


def table(key: Check, item: Check, *, most: int) -> Check:
    """Return the check of an object whose keys are names."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            raise _wrong(value, path, f"an object of up to {most}")
        for name, one in value.items():
            key(name, path)
            item(one, f"{path}.{name}")

    return check


def text(pattern: str, expected: str = "") -> Check:
    """Return the check of a text that a pattern matches as a whole."""
    compiled = re.compile(pattern, re.ASCII | re.DOTALL)

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise _wrong(value, path, expected or f"a text of the form {pattern}")

    return check


def only(*allowed: Any) -> Check:
    """Return the check of a value that is one of a few."""

    def check(value: Any, path: str) -> None:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise _wrong(value, path, f"one of {', '.join(map(repr, allowed))}")

    return check


def integer(least: int = -_LARGEST, most: int = _LARGEST) -> Check:
    """Return the check of a whole number."""

    def check(value: Any, path: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _wrong(value, path, f"an integer from {least} to {most}")

    return check


def optional(item: Check) -> Check:
    """Return the check of a value that may be null."""

    def check(value: Any, path: str) -> None:
        if value is not None:
            item(value, path)

    return check


def flag(value: Any, path: str) -> None:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise _wrong(value, path, "true or false")


def number(value: Any, path: str) -> None:
    """Check that a value is a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _wrong(value, path, "a finite number")


def _wrong(value: Any, path: str, expected: str) -> ValueError:
    shown = printable(repr(value)[:200], limit=80)
    return ValueError(f"{printable(path, limit=120)} is {shown}, expected {printable(expected)}")
