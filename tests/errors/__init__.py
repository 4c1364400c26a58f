"""Errors by class and code: what tests assert of them.

Their wording stands in `tests/golden/errors.json`, by code, and `python -m tests.errors` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest

from tests.errors.fitting import fits_in, is_named, values_in
from tests.errors.golden import FILE, Known, read

__all__ = ["fails", "told"]


@contextmanager
def fails(
    code: str, *words: str, by: type[BaseException] | None = None
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Assert that a block raises an error of the golden file, and that it names what it is about.

    Args:
        code: of the error.
        words: names, numbers and paths that stand in the holes of its wording, or around it where another error
            reports this one. The code of another error that is reported, or reports this one, can be among them.
        by: the class of what is raised, where it is not the error's own, since another error reports it.
    """
    __tracebackhide__ = True
    wanted = _known_as(code)
    expected = by or (SystemExit if wanted.kind == "SystemExit" else Exception)
    caught = pytest.ExceptionInfo[BaseException].for_later()
    try:
        yield caught
    except expected as error:
        caught.fill_unfilled((type(error), error, error.__traceback__))
    else:
        pytest.fail(f"nothing was raised; expected {code}: {wanted.message}")
    kinds = {one.__name__ for one in caught.type.__mro__}
    if by is None and not kinds.intersection(wanted.kinds):
        pytest.fail(f"{code} is a {wanted.kind}; raised was {caught.type.__name__}: {caught.value}")
    _check(message_of(caught.value), wanted, words)


def told(text: str, code: str, *words: str) -> None:
    """Assert that a text, such as what a command has written, holds an error's message; however its lines are broken.

    Args:
        text: to look in.
        code: of the error.
        words: that stand in the holes of its wording, or around it, and codes of errors that it reports.
    """
    __tracebackhide__ = True
    _check(text, _known_as(code), words)


def message_of(error: BaseException) -> str:
    """Return what an error says, with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def _check(text: str, wanted: Known, words: Sequence[str]) -> None:
    __tracebackhide__ = True
    fits = fits_in(text, _golden())
    if wanted.code not in fits:
        text = re.sub(r"\s+", " ", text)
        fits = fits_in(text, _golden())
    if wanted.code not in fits:
        other = ", ".join(sorted(fits, key=lambda code: -fits[code].known.template.letters)[:3]) or "none that is known"
        pytest.fail(f"it is {other}; expected {wanted.code}: {wanted.message}\nIt says: {text}")
    values = values_in(wanted.template, text)
    if missing := [word for word in words if word not in fits and not is_named(word, values)]:
        pytest.fail(f"{wanted.code} does not name {missing}; it says: {text}\nIts wording is: {wanted.message}")


def _known_as(code: str) -> Known:
    __tracebackhide__ = True
    if code not in _golden():
        pytest.fail(f"{FILE.name} has no error of the code {code!r}; `python -m tests.errors` renews it")
    return _golden()[code]


@cache
def _golden() -> dict[str, Known]:
    return read()
