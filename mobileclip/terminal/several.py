"""Flags with several values, given once for each value.

tyro lets such a flag take all that follows it, up to the next flag: `search --not people "a cat"` would find nothing.
Here `--not people --not dogs "a cat"` is what it looks like. Where nothing else can be meant, several values behind one
flag are still its own: where a command takes nothing but flags, or has what it takes elsewhere on the line.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import attrs
from tyro.conf import OmitArgPrefixes, Positional

_NUMBER = re.compile(r"-[0-9.]+(e[+-]?[0-9]+)?")
_OMIT, _POSITIONAL = get_args(OmitArgPrefixes[int])[1], get_args(Positional[int])[1]
_SEVERAL, _ANY_NUMBER = -1, 1_000_000


@attrs.frozen
class _Line:
    """What a command takes: how many values each flag has, by its names, and how many positional ones there may be."""

    flags: Mapping[str, int]
    num_positional: int


def in_order(target: Callable[..., Any], arguments: Sequence[str], default: object = None) -> list[str]:
    """Return a command line in the order in which tyro reads it as it was meant.

    Args:
        target: a function or a class, every argument of which is a flag.
        arguments: the command line, without the program.
        default: an instance of the class, where there is one: some of its fields are of the class that it has there.

    Raises:
        ValueError: if more follows a flag than can be meant; the message says how it is written.
    """
    if not _may_need_order(arguments):
        return list(arguments)
    line = _line_of(target, default)
    plain: list[str] = []
    runs: dict[str, list[list[str]]] = {}
    num_given, waiting = 0, list(arguments)
    while waiting:
        token = waiting.pop(0)
        name, equals, value = token.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        if not _is_flag(token):
            num_given += 1
            plain.append(token)
        elif name not in line.flags:
            return list(arguments)  # for tyro, which names what it does not know
        elif line.flags[name] != _SEVERAL:
            count = 0 if equals else line.flags[name]
            plain += [token, *waiting[:count]]
            del waiting[:count]
        elif equals:
            runs.setdefault(name, []).append([value])
        else:
            run = [waiting.pop(0) for _ in range(_run_length(waiting))]
            runs.setdefault(name, []).append(run)
    rest: list[str] = []
    if line.num_positional and not num_given:
        rest = [one for given in runs.values() for run in given for one in run[1:]]
        runs = {name: [run[:1] for run in given] for name, given in runs.items()}
        if len(rest) > line.num_positional:
            name = next(iter(runs))
            raise ValueError(
                f"{' '.join(map(repr, rest))} cannot all be meant by themselves: a flag takes one value, and is given "
                f"again for the next, as in {name} ONE {name} ANOTHER"
            )
    flags = [part for name, given in runs.items() for part in (name, *(one for run in given for one in run))]
    # What is positional comes first: tyro would take it for one more value.
    return [*rest, *plain, *flags]


def _may_need_order(arguments: Sequence[str]) -> bool:
    """Return whether a flag comes twice, or two values follow one: the command lines of most runs have neither."""
    flags = [one.partition("=")[0] for one in arguments if _is_flag(one)]
    kinds = [_is_flag(one) for one in arguments]
    return len(set(flags)) < len(flags) or any(
        kinds[place] and not any(kinds[place + 1 : place + 3]) for place in range(len(kinds) - 2)
    )


def _is_flag(token: str) -> bool:
    return token.startswith("-") and len(token) > 1 and not _NUMBER.fullmatch(token)


def _run_length(tokens: Sequence[str]) -> int:
    return next((place for place, token in enumerate(tokens) if _is_flag(token)), len(tokens))


def _line_of(target: Callable[..., Any], default: object = None) -> _Line:
    flags: dict[str, int] = {"-h": 0, "--help": 0}
    num_positional = 0
    for names, values, is_positional in _arguments(target, default, "", omits=False):
        if is_positional:
            num_positional += _ANY_NUMBER if values == _SEVERAL else values
        else:
            flags |= dict.fromkeys(names, values)
            flags |= {_negated(name): 0 for name in names if not values}
    return _Line(flags, num_positional)


def _negated(name: str) -> str:
    above, _, leaf = name[2:].rpartition(".")
    return f"--{above}.no-{leaf}" if above else f"--no-{leaf}"


def _arguments(
    target: Any, default: object, prefix: str, *, omits: bool
) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """Yield the names of each argument, how many values it has, and whether it is positional."""
    hints = get_type_hints(target, include_extras=True)
    for field in _fields(target):
        kind, about = _unwrapped(hints.get(field, str))
        chosen = getattr(default, field, None)
        # Of a choice among classes, the default is the one that has flags.
        kind = type(chosen) if attrs.has(type(chosen)) else kind
        given = [one.name for one in about if getattr(one, "name", None) is not None]
        name = given[-1] if given else field.replace("_", "-")
        full = name if omits or not prefix or not name else f"{prefix}.{name}"
        if isinstance(kind, type) and attrs.has(kind):
            yield from _arguments(kind, chosen, full if name else prefix, omits=omits or _OMIT in about)
        else:
            aliases = [alias for one in about for alias in getattr(one, "aliases", None) or ()]
            yield (f"--{full}", *aliases), _values_of(kind), _POSITIONAL in about


def _fields(target: Any) -> list[str]:
    if attrs.has(target):
        return [field.name for field in attrs.fields(target)]
    return list(inspect.signature(target).parameters)


def _unwrapped(kind: Any) -> tuple[Any, list[Any]]:
    """Return a type without what is said about it and without `None`, and what is said."""
    about: list[Any] = []
    while True:
        if get_origin(kind) is Annotated:
            kind, *said = get_args(kind)
            about = [*said, *about]
        elif get_origin(kind) in (Union, types.UnionType) and len(get_args(kind)) == 2 and type(None) in get_args(kind):
            kind = next(one for one in get_args(kind) if one is not type(None))
        else:
            return kind, about


def _values_of(kind: Any) -> int:
    if kind is bool:
        return 0
    if get_origin(kind) in (tuple, list):
        parts = get_args(kind)
        return _SEVERAL if get_origin(kind) is list or parts[1:] == (...,) else len(parts)
    return 1
