"""Libraries that a test compares with, imported when something of them is used first, and not to collect the tests."""

from __future__ import annotations

import importlib
from typing import Any


class lazily:  # noqa: N801 - called as a function is
    """A module.

    Args:
        name: by which it is imported.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks for marks of its own at all that a file of tests has
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
