"""Errors are asserted by their class and by what they must name, never by their wording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

Kind = type[BaseException] | tuple[type[BaseException], ...]


@contextmanager
def fails(kind: Kind, *words: str) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Assert that a block raises an error, and that its message or notes name what it is about.

    Args:
        kind: class of the error.
        words: names, numbers and paths that the error must name.
    """
    __tracebackhide__ = True
    with pytest.raises(kind) as caught:
        yield caught
    told("\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])]), *words)


def told(text: str, *words: str) -> None:
    """Assert that a text, such as what a command has written, has words in it; however its lines are broken."""
    __tracebackhide__ = True
    both = text, re.sub(r"\s+", " ", text)
    if missing := [word for word in words if not any(word in one for one in both)]:
        pytest.fail(f"{missing} are not named by: {text}")
