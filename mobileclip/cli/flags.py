"""The flags of a command: the arguments of its function and the fields of the specs among them, as tyro reads them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import attrs
from tyro.conf import AvoidSubcommands, Positional, UseAppendAction, arg
from tyro.extras import get_parser

from mobileclip.terminal.flags import is_list, named, told, told_of_specs
from mobileclip.terminal.help import parse

SHORT = {
    name: (letter,)
    for name, letter in {"output": "-o", "out": "-o", "model": "-m", "index_folder": "-i", "k": "-k", "port": "-p"}.items()
} | {"num_workers": ("-j",), "num_threads": ("-j", "--num-workers")}
"""Letters that stand for a flag, by the name of the argument or of the field, in every command that has it."""

COMMON = {
    "--quiet": "show no progress",
    "--strict": "end with status 1 in place of 0 where something was left out",
}
"""Flags of every command, with what they are for."""

_POSITIONAL = get_args(Positional[int])[1]


def call(function: Callable[..., Any], arguments: list[str], *, program: str, description: str = "") -> Any:
    """Read a command line and call a command.

    Args:
        function: the command.
        arguments: behind its name.
        program: what was typed before.
        description: what its help begins with.
    """
    return parse(
        reader_of(function),
        arguments,
        description=description,
        prog=program,
        specs={"letters": SHORT},
        config=(AvoidSubcommands,),
    )


def names_of(function: Callable[..., Any]) -> list[str]:
    """Return the flags of a command."""
    with told_of_specs(letters=SHORT), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = get_parser(reader_of(function), config=(AvoidSubcommands,))
    return sorted(name for action in parser._actions for name in action.option_strings if name.startswith("--"))


def reader_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command whose flags have their short names, and lists one value at a time."""
    hints = get_type_hints(function, include_extras=True)
    given = inspect.signature(function).parameters

    def reader(**values: Any) -> Any:
        ahead = [values.pop(name) for name, one in given.items() if one.kind is one.POSITIONAL_ONLY]
        return function(*ahead, **values)

    parameters = [_flag(one, hints[name]) for name, one in given.items()]
    reader.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    reader.__annotations__ = {one.name: one.annotation for one in parameters}
    reader.__doc__ = function.__doc__
    return reader


def _flag(one: inspect.Parameter, kind: Any) -> inspect.Parameter:
    # Python 3.10 alone puts an `Optional` around a type whose default is `None`.
    kind = get_args(kind)[0] if get_origin(kind) is Union and get_origin(get_args(kind)[0]) is Annotated else kind
    whole, said = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    if not attrs.has(whole):
        kind = told(named(kind, one.default), one.default)
        if _POSITIONAL not in said:
            if is_list(whole) and one.default in ((), one.empty):
                kind = UseAppendAction[kind]
            if one.name in SHORT:
                kind = Annotated[kind, arg(aliases=SHORT[one.name])]
    elif not said:
        kind = Annotated[kind, arg(name="")]
    return one.replace(kind=one.KEYWORD_ONLY, annotation=kind)
