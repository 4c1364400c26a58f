"""Names to values, at the edges only: the command line, JSON and checkpoint metadata. Python code passes values."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

T = TypeVar("T")

_MAX_SHOWN = 80


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to values of one kind, open to third parties.

    A package adds to it with `registry.register(name)` as a decorator, `registry.add(name, value)`, or without being
    imported first, through an entry point in the group `mobileclip.<kind>` whose object is the value. Entry points are
    looked up when a name is not found, never at import.

    Args:
        kind: what the names stand for, singular with underscores, such as `image_encoder`; used in messages and as
            the entry-point group.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, T] = {}
        self._entry_points_read = False

    @property
    def label(self) -> str:
        """The kind as a person reads it."""
        return self.kind.replace("_", " ")

    def add(self, name: str, value: T) -> None:
        """Register `value` under `name`.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._values:
            raise ValueError(f"{self.label} {name!r} is registered already; choose another name")
        self._values[name] = value

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`."""

        def decorate(value: T) -> T:
            self.add(name, value)
            return value

        return decorate

    def __getitem__(self, name: str) -> T:
        """Return the value called `name`.

        Raises:
            KeyError: if there is none; `resolve` gives people the message for it.
        """
        if name not in self._values:
            self._read_entry_points()
        return self._values[name]

    def resolve(self, name: str) -> T:
        """Return the value called `name`, for a name that a person typed.

        Raises:
            ValueError: if the name is unknown; the message names the nearest ones.
        """
        try:
            return self[name]
        except KeyError:
            raise ValueError(self.unknown(name)) from None

    def unknown(self, name: str) -> str:
        """Return the message for an unknown name: the nearest names, or all where none is near."""
        name = name[:_MAX_SHOWN]
        near = difflib.get_close_matches(name, self, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(self))}"
        return f"unknown {self.label} {name!r}; {hint}"

    def __iter__(self) -> Iterator[str]:
        self._read_entry_points()
        return iter(self._values)

    def __len__(self) -> int:
        self._read_entry_points()
        return len(self._values)

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for entry_point in metadata.entry_points(group=f"mobileclip.{self.kind}"):
            value = entry_point.load()
            # To load it is to import its package, whose decorators may have registered it by now.
            if self._values.get(entry_point.name) is not value:
                self.add(entry_point.name, value)
