"""Names to values, at the edges only: the command line, JSON and checkpoint metadata. Python code passes values."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

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
    found, never at import. Only the package that has the name is imported; one that cannot be, or whose name is taken,
    is warned of by the name of its distribution when all names are asked for, and left out.

    Args:
        kind: what the names stand for, singular with underscores, such as `image_encoder`; used in messages and as
            the entry-point group.
        home: the module of the library that registers its own values, where it is not in the registry's package;
            imported like those of third parties.
        listed: the command that lists the names, where there is one.
    """

    def __init__(self, kind: str, *, home: str | None = None, listed: str = "") -> None:
        self.kind = kind
        self.home = home
        self.listed = listed
        self._values: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The kind as a person reads it."""
        return self.kind.replace("_", " ")

    def add(self, name: str, value: T, *, replace: bool = False) -> None:
        """Register `value` under `name`.

        A class or function that is defined again, as where a cell of a notebook runs twice, takes the place of the one
        before.

        Args:
            name: name of the value.
            value: what the name leads to.
            replace: whether it takes the place of another one.

        Raises:
            ValueError: if the name is taken.
        """
        if not replace and name in self._values and not _is_redefined(self._values[name], value):
            raise ValueError(f"{self.label} {name!r} is registered already; choose another name, or pass replace=True")
        self._values[name] = value

    def register(self, name: str, *, replace: bool = False) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`, as `add` does."""

        def decorate(value: T) -> T:
            self.add(name, value, replace=replace)
            return value

        return decorate

    def add_alias(self, alias: str, name: str) -> None:
        """Let `resolve` understand another library's name of a value; it is not listed."""
        self._aliases[spelling(alias)] = name

    def __getitem__(self, name: str) -> T:
        """Return the value called `name`.

        Raises:
            KeyError: if there is none; `resolve` gives people the message for it.
            ValueError: if it is of another package, which cannot be imported.
        """
        if name not in self._values:
            self._import_modules()
        if name not in self._values and name in self._plugins:
            self._load(self._plugins[name][0])
        return self._values[name]

    def resolve(self, name: str) -> T:
        """Return the value that a person means: by its name, in any case, with any dashes, or by an alias.

        Raises:
            ValueError: if the name is unknown; the message names the nearest ones.
        """
        return self[self.named(name)]

    def named(self, name: str) -> str:
        """Return the registered name that a person means.

        Raises:
            ValueError: if there is none; the message names the nearest ones.
        """
        if name in self:
            return name
        alike = {known for known in self if spelling(known) == spelling(name)}
        alike |= {self._aliases[spelling(name)]} if spelling(name) in self._aliases else set()
        if len(alike) != 1:
            raise ValueError(self.unknown(name))
        return alike.pop()

    def unknown(self, name: str) -> str:
        """Return the message for an unknown name: the nearest names, or all where none is near."""
        name = name[:_MAX_SHOWN]
        hint = nearest(name, self, otherwise="no name is like it" if self.listed else None)
        end = "" if hint.endswith("?") else "."
        others = f", and all others listed by `{self.listed}`" if self.listed else ""
        return f"unknown {self.label} {name!r}; {hint}{end} Parts of your own are found with `{IMPORT} MODULE`{others}"

    def __iter__(self) -> Iterator[str]:
        self._import_modules()
        for plugin in chain.from_iterable(self._plugins.values()):
            self._load_or_warn(plugin)
        return iter(self._values)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @cached_property
    def _plugins(self) -> dict[str, list[metadata.EntryPoint]]:
        """What packages offer by name, those of the same name by their distributions."""
        found: dict[str, list[metadata.EntryPoint]] = {}
        for entry_point in sorted(_offered(self.kind), key=_distribution):
            found.setdefault(entry_point.name, []).append(entry_point)
        return found

    def _load(self, plugin: metadata.EntryPoint) -> None:
        """Take in what a package offers; its decorators may have registered it by the time that it is imported.

        Raises:
            ValueError: if it cannot be imported, or the name is taken; the message names the distribution.
        """
        shown = f"{self.label} {plugin.name!r} of {_distribution(plugin)}"
        try:
            value = plugin.load()
        except Exception as error:  # whatever a stranger's module raises
            raise ValueError(f"the {shown} cannot be imported: {type(error).__name__}: {error}") from error
        if self._values.setdefault(plugin.name, value) is not value:
            raise ValueError(f"the {shown} has a name that is taken")

    def _load_or_warn(self, plugin: metadata.EntryPoint) -> None:
        try:
            self._load(plugin)
        except ValueError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=3)

    def _import_modules(self) -> None:
        if self.home is not None:
            importlib.import_module(self.home)
        for module in filter(None, os.environ.get(MODULES, "").split(os.pathsep)):
            import_parts(module)


def _is_redefined(known: object, value: object) -> bool:
    """Whether two values are one definition that ran twice."""
    names = [(getattr(each, "__module__", None), getattr(each, "__qualname__", None)) for each in (known, value)]
    return known is value or (names[0] == names[1] and None not in names[0])


def _distribution(plugin: metadata.EntryPoint) -> str:
    # Whatever was removed since then has no name.
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist and plugin.dist.name else plugin.value


def spelling(name: str) -> str:
    """Return a name without what libraries spell in their own ways."""
    return re.sub(r"[\W_]", "", name).lower()


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


def has_others(*kinds: str) -> bool:
    """Return whether packages or modules outside of the library may have registered values of one of these kinds."""
    return bool(os.environ.get(MODULES)) or any(_offered(kind) for kind in kinds)


def _offered(kind: str) -> metadata.EntryPoints:
    """Return what installed packages offer of a kind."""
    places = tuple((place, _changed(place)) for place in sys.path)
    offered: metadata.EntryPoints = _installed(places).select(group=f"mobileclip.{kind}")
    return offered


def _changed(place: str) -> int | None:
    try:
        return Path(place).stat().st_mtime_ns  # an empty one is the current folder
    except OSError:
        return None


@lru_cache(maxsize=1)
def _installed(places: tuple[tuple[str, int | None], ...]) -> Any:
    """Return all entry points: a file of each distribution is read, once for all registries until there are others."""
    del places
    return metadata.entry_points()


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
    """Return the hint for an unknown name: the known names that are spelled most like it.

    Args:
        name: as a person typed it.
        known: those that there are.
        otherwise: what is said where none is near; without it, all of them.
    """
    names = list(known)
    folded = {known.lower().replace("-", "_"): known for known in names}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=3)
    if near:
        return f"did you mean {' or '.join(repr(folded[one]) for one in near)}?"
    return f"known: {', '.join(sorted(names))}" if otherwise is None else otherwise


def nearest_file(path: Path) -> str:
    """Return the hint for a missing file or folder: similar names beside it, if there are any."""
    from mobileclip.storage import printable  # a subpackage of its own, which a registry alone does without

    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "" if path.parent == path else f" (there is no folder {printable(path.parent)} either)"
    hint = nearest(path.name, names, otherwise="")
    return hint and f"; {hint}"


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
