"""Registries of names for the command line, JSON and checkpoint metadata; Python code passes objects instead."""

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
"""Environment variable with modules that register values: modules or paths of `.py` files, joined by `os.pathsep`."""

_MAX_SHOWN = 80


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to values of one kind, which third parties can extend.

    A package adds a value with the decorator `registry.register(name)`, with `registry.add(name, value)`, or, without
    an import, through an entry point in the group `mobileclip.<kind>` whose object is the value. A single module adds
    values through `--import MODULE` or the environment variable `MOBILECLIP_IMPORT`. If a name is unknown, the registry
    imports such modules; if the name is still unknown, the registry imports only the package that provides the name.
    When listing all names, the registry skips entry points that cannot be imported or whose name is taken, with a
    warning that names the distribution.

    Args:
        kind: kind of the values, singular with underscores, such as `image_encoder`, for messages and the entry-point
            group.
        home: library module that registers the library's own values, if it is outside the registry's package; imported
            only when a name is not found, like third-party modules.
        listed: command that lists the names; empty for no command.
    """

    def __init__(self, kind: str, *, home: str | None = None, listed: str = "") -> None:
        self.kind = kind
        self.home = home
        self.listed = listed
        self._values: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The kind with spaces instead of underscores, for messages."""
        return self.kind.replace("_", " ")

    def add(self, name: str, value: T, *, replace: bool = False) -> None:
        """Register `value` under `name`.

        A class or function that is defined again, for example when a notebook cell runs twice, replaces the earlier
        definition.

        Args:
            name: name of the value.
            value: value to register.
            replace: whether the value may replace a registered value.

        Raises:
            ValueError: if the name is taken.
        """
        if not replace and name in self._values and not _is_redefined(self._values[name], value):
            raise ValueError(f"{self.label} {name!r} is registered already; choose another name, or pass replace=True")
        self._values[name] = value

    def register(self, name: str, *, replace: bool = False) -> Callable[[T], T]:
        """Return a decorator that registers the decorated object under `name`, as `add` does."""

        def decorate(value: T) -> T:
            self.add(name, value, replace=replace)
            return value

        return decorate

    def add_alias(self, alias: str, name: str) -> None:
        """Let `resolve` accept another library's name for a value; the alias is not listed."""
        self._aliases[spelling(alias)] = name

    def __getitem__(self, name: str) -> T:
        """Return the value with the exact name `name`.

        Raises:
            KeyError: if no value has this name; the error of `resolve` suggests similar names.
            ValueError: if the package that provides the value cannot be imported.
        """
        if name not in self._values:
            self._import_modules()
        if name not in self._values and name in self._plugins:
            self._load(self._plugins[name][0])
        return self._values[name]

    def resolve(self, name: str) -> T:
        """Return the value for a name or an alias, ignoring case, dashes and underscores.

        Raises:
            ValueError: if the name is unknown; the message lists the nearest names.
        """
        return self[self.named(name)]

    def named(self, name: str) -> str:
        """Return the registered name for a name or an alias, ignoring case, dashes and underscores.

        Raises:
            ValueError: if no registered name or alias matches; the message lists the nearest names.
        """
        if name in self:
            return name
        alike = {known for known in self if spelling(known) == spelling(name)}
        alike |= {self._aliases[spelling(name)]} if spelling(name) in self._aliases else set()
        if len(alike) != 1:
            raise ValueError(self.unknown(name))
        return alike.pop()

    def unknown(self, name: str) -> str:
        """Return the message for an unknown name: the nearest names, or all names if none is near."""
        name = name[:_MAX_SHOWN]
        hint = nearest(name, self, otherwise="no similar name exists" if self.listed else None)
        end = "" if hint.endswith("?") else "."
        others = f"; `{self.listed}` lists all names" if self.listed else ""
        return f"unknown {self.label} {name!r}; {hint}{end} To add a name, pass `{IMPORT} MODULE`{others}"

    def __iter__(self) -> Iterator[str]:
        self._import_modules()
        for plugin in chain.from_iterable(self._plugins.values()):
            self._load_or_warn(plugin)
        return iter(self._values)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @cached_property
    def _plugins(self) -> dict[str, list[metadata.EntryPoint]]:
        """Entry points of packages by name, sorted by distribution if several have the same name."""
        found: dict[str, list[metadata.EntryPoint]] = {}
        for entry_point in sorted(_offered(self.kind), key=_distribution):
            found.setdefault(entry_point.name, []).append(entry_point)
        return found

    def _load(self, plugin: metadata.EntryPoint) -> None:
        """Import and register the value of an entry point, unless the import itself has registered the value.

        Raises:
            ValueError: if the import fails, or the name is taken; the message names the distribution.
        """
        shown = f"{self.label} {plugin.name!r} of {_distribution(plugin)}"
        try:
            value = plugin.load()
        except Exception as error:  # any error of a third-party module
            raise ValueError(f"the {shown} cannot be imported: {type(error).__name__}: {error}") from error
        if self._values.setdefault(plugin.name, value) is not value:
            raise ValueError(f"the {shown} cannot be registered, because the name is taken")

    def _load_or_warn(self, plugin: metadata.EntryPoint) -> None:
        try:
            self._load(plugin)
        except ValueError as error:
            warnings.warn(f"{error}; the registry skips this entry point", stacklevel=3)

    def _import_modules(self) -> None:
        if self.home is not None:
            importlib.import_module(self.home)
        for module in filter(None, os.environ.get(MODULES, "").split(os.pathsep)):
            import_parts(module)


def _is_redefined(known: object, value: object) -> bool:
    """Whether two values come from the same definition, run twice."""
    names = [(getattr(each, "__module__", None), getattr(each, "__qualname__", None)) for each in (known, value)]
    return known is value or (names[0] == names[1] and None not in names[0])


def _distribution(plugin: metadata.EntryPoint) -> str:
    # A distribution that was uninstalled in the meantime has no name.
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist and plugin.dist.name else plugin.value


def spelling(name: str) -> str:
    """Return a name in lower case without dashes and underscores, which libraries spell differently."""
    return re.sub(r"[\W_]", "", name).lower()


def with_parts(arguments: Sequence[str]) -> list[str]:
    """Import the modules of `--import` on a command line, and return the command line without these flags.

    Child processes import the modules as well when they look up an unknown name.

    Raises:
        ValueError: if the module's name is missing, or the module does not exist.
    """
    modules, rest = taken(IMPORT, arguments)
    for module in modules:
        if not module:
            raise ValueError(f"{IMPORT} needs the name of a module or the path of a .py file")
        place = str(Path(module).resolve()) if module.endswith(".py") else module
        import_parts(place)
        known = os.environ.get(MODULES, "").split(os.pathsep)
        os.environ[MODULES] = os.pathsep.join(dict.fromkeys([*filter(None, known), place]))
    return rest


def has_others(*kinds: str) -> bool:
    """Return whether packages or modules outside the library may register values of one of `kinds`."""
    return bool(os.environ.get(MODULES)) or any(_offered(kind) for kind in kinds)


def _offered(kind: str) -> metadata.EntryPoints:
    """Return the entry points that installed packages declare for a kind."""
    places = tuple((place, _changed(place)) for place in sys.path)
    offered: metadata.EntryPoints = _installed(places).select(group=f"mobileclip.{kind}")
    return offered


def _changed(place: str) -> int | None:
    try:
        return Path(place).stat().st_mtime_ns  # an empty path is the current folder
    except OSError:
        return None


@lru_cache(maxsize=1)
def _installed(places: tuple[tuple[str, int | None], ...]) -> Any:
    """Return all entry points, cached because a lookup reads a file of each distribution."""
    del places
    return metadata.entry_points()


def taken(flag: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of a flag, one per occurrence, and the command line without the flag.

    Args:
        flag: flag with its dashes, used as `--flag value` or `--flag=value`; a missing value becomes an empty string.
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
    """Return a hint for an unknown name: the known names with the most similar spelling.

    Args:
        name: name as the user typed it.
        known: known names.
        otherwise: hint if no name is near; None to list all known names.
    """
    names = list(known)
    folded = {known.lower().replace("-", "_"): known for known in names}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=3)
    if near:
        return f"did you mean {' or '.join(repr(folded[one]) for one in near)}?"
    return f"known: {', '.join(sorted(names))}" if otherwise is None else otherwise


def nearest_file(path: Path) -> str:
    """Return a hint for a missing file or folder: similar names in the same folder, if there are any."""
    from mobileclip.storage import printable  # imported here, since a registry alone does not need this subpackage

    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "" if path.parent == path else f" (there is no folder {printable(path.parent)} either)"
    hint = nearest(path.name, names, otherwise="")
    return hint and f"; {hint}"


@cache
def import_parts(module: str) -> None:
    """Import a module whose decorators register values.

    Args:
        module: dotted name of the module, also searched in the working folder; or path of a `.py` file.

    Raises:
        ValueError: if the module does not exist.
    """
    path = Path(module)
    name, folder = (path.stem, path.parent) if module.endswith(".py") else (module, Path())
    sys.path.append(str(folder.resolve()))
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but lacks another module
        raise ValueError(
            f"{module} cannot be imported: there is no module {error.name!r} in {folder.resolve()}"
        ) from None
