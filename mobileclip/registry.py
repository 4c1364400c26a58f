"""Names to values, at the edges only: the command line, JSON and checkpoint metadata. Python code passes values."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

IMPORT = "--import"
MODULES = "MOBILECLIP_IMPORT"
"""Environment variable with modules that register parts: names or paths of `.py` files, apart by `os.pathsep`."""

_MAX_SHOWN = 80


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to values of one kind, open to third parties.

    A package adds to it with `registry.register(name)` as a decorator, `registry.add(name, value)`, or without being
    imported first, through an entry point in the group `mobileclip.<kind>` whose object is the value; a module alone,
    through `--import MODULE` or the environment variable `MOBILECLIP_IMPORT`. These are looked up when a name is not
    found, never at import.

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
            self._read_others()
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
        hint = nearest(name, self)
        end = "" if hint.endswith("?") else "."
        return f"unknown {self.label} {name!r}; {hint}{end} Parts of your own are found with {IMPORT} MODULE"

    def __iter__(self) -> Iterator[str]:
        self._read_others()
        return iter(self._values)

    def __len__(self) -> int:
        self._read_others()
        return len(self._values)

    def _read_others(self) -> None:
        for module in filter(None, os.environ.get(MODULES, "").split(os.pathsep)):
            import_parts(module)
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for entry_point in metadata.entry_points(group=f"mobileclip.{self.kind}"):
            value = entry_point.load()
            # To load it is to import its package, whose decorators may have registered it by now.
            if self._values.get(entry_point.name) is not value:
                self.add(entry_point.name, value)


def with_parts(arguments: Sequence[str]) -> list[str]:
    """Import the modules that `--import` names on a command line, and return it without them.

    Processes that this one starts import them as well, when they meet a name that they do not know.

    Raises:
        ValueError: if no module is named, or there is none of that name.
    """
    modules, rest = taken(IMPORT, arguments)
    for module in modules:
        if not module:
            raise ValueError(f"{IMPORT} needs the name of a module, or the path of a .py file")
        place = str(Path(module).resolve()) if module.endswith(".py") else module
        import_parts(place)
        known = os.environ.get(MODULES, "").split(os.pathsep)
        os.environ[MODULES] = os.pathsep.join(dict.fromkeys([*filter(None, known), place]))
    return rest


def taken(flag: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what follows a flag, each time it is given, and the command line without it.

    Args:
        flag: with its dashes, given as `--flag value` or `--flag=value`; without a value it has an empty one.
        arguments: the command line.
    """
    values: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        given, equals, value = argument.partition("=")
        if given == flag:
            values.append(value if equals else next(waiting, ""))
        else:
            rest.append(argument)
    return values, rest


def nearest(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """Return what to say of an unknown name: the nearest of those that are known.

    Args:
        name: as a person typed it.
        known: those that there are.
        otherwise: what is said where none is near; without it, all of them.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known: {', '.join(sorted(names))}" if otherwise is None else otherwise


@cache
def import_parts(module: str) -> None:
    """Import a module whose decorators register parts.

    Args:
        module: its dotted name, looked for in the working folder too; or the path of a `.py` file.

    Raises:
        ValueError: if there is none of that name.
    """
    path = Path(module)
    name, folder = (path.stem, path.parent) if module.endswith(".py") else (module, Path())
    sys.path.append(str(folder.resolve()))
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise ValueError(
            f"{module} cannot be imported: there is no module {error.name!r} in {folder.resolve()}"
        ) from None
