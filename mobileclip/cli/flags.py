"""The flags of a command, read from its function and from the specs that this takes: one vocabulary for all commands.

What is seldom set is a key, and no flag of its own: `--set KEY=VALUE`, `--rows KEY=VALUE`, `--engine KEY=VALUE`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from tyro.conf import Positional, arg

from mobileclip.registry import nearest
from mobileclip.terminal.flags import named, told

SHORT = {"output": "-o", "model": "-m", "index": "-i", "k": "-k", "num-workers": "-j", "port": "-p", "checkpoint": "-c"}
"""Letters that stand for a flag, in every command that has it."""

KEYED = {
    "--set": "what is seldom chosen, several times for several",
    "--rows": "how rows of .jsonl files and of tables are read, several times for several",
    "--engine": "local for processes on this machine, ray for a cluster, whose machines need the same paths",
}
"""Flags that take KEY=VALUE, with what they are for."""

COMMON = {
    "--quiet": "show no progress",
    "--strict": "end with status 1 in place of 0 where something was left out",
}
"""Flags of every command, with what they are for."""

_T = TypeVar("_T")
_POSITIONAL = get_args(Positional[int])[1]
_NO, _YES = ("false", "no", "off", "0"), ("", "true", "yes", "on", "1")


@attrs.frozen
class Key:
    """Marks an argument as a key of a flag such as `--set`, which takes several, and not as a flag of its own.

    Args:
        flag: the one that it is a value of.
    """

    flag: str = "--set"


HIDDEN = Key("")
"""Says of an argument that it works, and that no help has it."""


@attrs.frozen
class Fields:
    """Says of an argument that it is a spec, whose fields are flags.

    Args:
        flags: those that are, all by default; the others are keys.
        places: those that are typed without a name, in their order.
        without: those that cannot be typed.
        names: what some are called, in place of the field's own name.
        keys: the flag whose keys the others are.
    """

    flags: tuple[str, ...] | None = None
    places: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    names: Mapping[str, str] = attrs.field(factory=dict)
    keys: str = "--set"


@attrs.frozen(kw_only=True)
class Flag:
    """A flag, a key, or a positional argument.

    Args:
        path: the argument of the function, and the fields below it.
        name: as it is typed; of a positional argument, what stands for it.
        kind: its type, with what is said of it.
        default: what it is where it is not given; `inspect.Parameter.empty` where it must be.
        about: what it does.
        keyed: the flag whose key it is; None of a flag of its own.
        is_positional: whether it has no name on the command line.
    """

    path: tuple[str, ...]
    name: str
    kind: Any
    default: object
    about: str
    keyed: str | None
    is_positional: bool

    @property
    def key(self) -> str:
        """Its name without dashes."""
        return self.name.removeprefix("--")

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called."""
        short = SHORT.get(self.key)
        return (self.name,) if short is None else (self.name, short)

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return _bare(self.kind) is bool

    def parameter(self, about: str | None = None, metavar: str | None = None) -> inspect.Parameter:
        """Return it as an argument of a function that tyro reads."""
        told_as = arg(
            name=None if self.is_positional else self.key,
            aliases=self.names[1:] or None,
            help=about or self.about,
            metavar=metavar,
        )
        kind = told(named(Annotated[self.kind, told_as], self.default), self.default)
        return inspect.Parameter(
            "__".join(self.path), inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=kind
        )


def flags_of(
    target: Callable[..., Any], fields: Fields | None = None, path: tuple[str, ...] = (), given: object = None
) -> tuple[Flag, ...]:
    """Return all flags, keys and positional arguments of a command.

    Args:
        target: its function; or a spec, whose fields they are.
        fields: what is a flag of a spec; everything, without.
        path: where the spec is.
        given: a spec whose values are the defaults.
    """
    hints = {name: _as_written(kind) for name, kind in get_type_hints(target, include_extras=True).items()}
    texts = _texts(target)
    found: list[Flag] = []
    for name, default in _arguments(target, given):
        kind, said = _bare(hints[name]), get_args(hints[name])[1:]
        if fields is not None and name in fields.without:
            continue
        if isinstance(kind, type) and attrs.has(kind):
            # Rows are read alike by every command.
            inner = Fields(flags=(), keys="--rows") if name == "rows" else _said(said, Fields, fields)
            found += flags_of(kind, inner, (*path, name), default)
            continue
        is_place = fields is not None and name in fields.places
        kept_back = fields is not None and fields.flags is not None and name not in fields.flags and not is_place
        keyed = _said(said, Key, Key(fields.keys) if fields is not None and kept_back else None)
        called = next((one.name for one in said if getattr(one, "name", None)), name.replace("_", "-"))
        called = called if fields is None else fields.names.get(name, called)
        metavar = next((one.metavar for one in said if getattr(one, "metavar", None)), name.upper())
        is_positional = is_place or _POSITIONAL in said
        flag = Flag(
            path=(*path, name),
            name=metavar if is_positional else f"--{called}",
            kind=Annotated[hints[name], _POSITIONAL, arg(metavar=metavar)] if is_place else hints[name],
            default=default,
            about=texts.get(name, ""),
            keyed=None if keyed is None else keyed.flag,
            is_positional=is_positional,
        )
        found.append(flag)
    return tuple(found)


def reader_of(function: Callable[..., Any], flags: Sequence[Flag]) -> Callable[..., Any]:
    """Return the command as a function that takes every flag by itself, keys among them.

    Args:
        function: the command.
        flags: those of it.
    """

    def call(**values: Any) -> Any:
        given = _gathered(function, {flag.path: values["__".join(flag.path)] for flag in flags})
        ahead = [
            given.pop(name)
            for name, one in inspect.signature(function).parameters.items()
            if one.kind is inspect.Parameter.POSITIONAL_ONLY
        ]
        return function(*ahead, **given)

    return _with(call, [flag.parameter() for flag in flags])


def helper_of(flags: Sequence[Flag]) -> Callable[..., Any]:
    """Return a function whose flags are those that `--help` shows: keys stand with the flag that takes them.

    Args:
        flags: those of the command.
    """
    parameters = []
    for flag in flags:
        if flag.keyed is None:
            keys = keys_of(flags, flag.name)
            metavar = f"{'|'.join(get_args(_bare(flag.kind)))}|KEY=VALUE" if keys else None
            parameters.append(flag.parameter(_with_keys(flag.about, keys) if keys else None, metavar))
    for name, about in KEYED.items():
        keys = keys_of(flags, name)
        if keys and not any(flag.name == name for flag in flags):
            kind = Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")]
            shown = Flag(
                path=(name[2:],), name=name, kind=kind, default=(), about=about, keyed=None, is_positional=False
            )
            parameters.append(shown.parameter(_with_keys(about, keys)))

    def shown_only(**_: Any) -> None:
        """Take nothing."""

    return _with(shown_only, parameters)


def keys_of(flags: Sequence[Flag], name: str) -> dict[str, Flag]:
    """Return the keys that a flag takes, by how they are typed."""
    return {flag.key: flag for flag in flags if flag.keyed == name}


def spelled_out(arguments: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """Return a command line with every `--set KEY=VALUE`, and the like, as a flag of its own.

    Args:
        arguments: the command line, behind the command.
        flags: those of the command.

    Raises:
        ValueError: if a key is unknown, or a switch is neither on nor off; the message has what there is.
    """
    found: list[str] = []
    waiting = list(arguments)
    while waiting:
        token = waiting.pop(0)
        name, equals, value = token.partition("=")
        keys = keys_of(flags, name) if name in KEYED else {}
        if not keys or not (equals or waiting):
            found.append(token)
            continue
        given = value if equals else waiting.pop(0)
        key, has_value, value = given.partition("=")
        if not has_value and any(flag.name == name for flag in flags):
            found += [name, given]
            continue
        flag = keys.get(key.replace("_", "-"))
        if flag is None:
            raise ValueError(f"{name} has no key {key!r}; {nearest(key, keys)}")
        found.append(_as_flag(name, flag, value))
    return found


def _as_flag(name: str, flag: Flag, value: str) -> str:
    if not flag.is_switch:
        return f"{flag.name}={value}"
    if value.lower() not in _YES + _NO:
        raise ValueError(f"{name} {flag.key}={value} is neither on nor off; write {flag.key}=yes, or {flag.key}=no")
    return flag.name if value.lower() in _YES else f"--no-{flag.key}"


def _arguments(target: Any, given: object) -> Iterator[tuple[str, object]]:
    """Yield the arguments of a function, or the fields of a class, with their defaults."""
    if not attrs.has(target):
        yield from ((name, one.default) for name, one in inspect.signature(target).parameters.items())
        return
    for field in attrs.fields(target):
        make = getattr(field.default, "factory", None)
        default = inspect.Parameter.empty if field.default is attrs.NOTHING else field.default
        default = default if make is None else make()
        yield field.name, getattr(given, field.name) if attrs.has(type(given)) else default


def _as_written(kind: Any) -> Any:
    """Return a type without the `Optional` that Python 3.10 alone puts around one whose default is `None`."""
    parts = get_args(kind)
    return parts[0] if get_origin(kind) is Union and get_origin(parts[0]) is Annotated else kind


def _said(said: Sequence[Any], kind: type[_T], otherwise: _T | None) -> _T | None:
    return next((one for one in said if isinstance(one, kind)), otherwise)


def _gathered(function: Callable[..., Any], values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the arguments of a function, of which specs are made of their fields."""
    hints = get_type_hints(function)
    given: dict[str, Any] = {}
    for path in dict.fromkeys(path[0] for path in values):
        below = {one[1:]: value for one, value in values.items() if one[0] == path}
        given[path] = below[()] if () in below else hints[path](**_gathered(hints[path], below))
    return given


def _texts(documented: Any) -> dict[str, str]:
    """Return what a docstring says of each argument, in a line."""
    told_of = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")[2]
    parts = re.split(r"^ {4}(\w+): ", re.split(r"\n(?=\S)", told_of)[0], flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _with_keys(about: str, keys: Mapping[str, Flag]) -> str:
    return f"{about.rstrip('.')}; keys, of which --help-all says more: {', '.join(keys)}"


def _with(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in parameters}
    return function


def _bare(kind: Any) -> Any:
    """Return a type without what is said of it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
