"""Parses command lines with tyro: short names, repeatable lists, defaults computed from other fields, rare flags."""

from __future__ import annotations

import difflib
import inspect
import io
import re
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import tyro
from tyro.conf import AvoidSubcommands, Fixed, Positional, Suppress, UseAppendAction, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from mobileclip.terminal.common import RARE
from mobileclip.terminal.printing import say

T = TypeVar("T")
Field = tuple[type, str]
"""A class, and the name of one of its fields."""

ASKING, ASKING_ALL = frozenset(("-h", "--help")), "--help-all"

_WORDS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
_POSITIONAL = get_args(Positional[int])[1]
_LEFT_OUT = object()
_NOTHING = (None, False, inspect.Parameter.empty, (), "")


@attrs.frozen(kw_only=True)
class FlagRules:
    """The rules that turn fields and arguments into flags.

    Args:
        aliases: additional flag names of fields, by class and field name.
        letters: short flag names, such as `-o`, by field or argument name, for all classes.
        fixed: fields without flags, as pairs of class and field name.
        made_by: functions that create instances of a class from the flags, by class.
        all_flags: whether the help shows rare flags.
    """

    aliases: Mapping[Field, tuple[str, ...]] = attrs.field(factory=dict)
    letters: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    fixed: Collection[Field] = ()
    made_by: Mapping[type, Callable[..., Any]] = attrs.field(factory=dict)
    all_flags: bool = False

    def flag(self, name: str, kind: Any, default: Any, aliases: tuple[str, ...] = (), *, follows: bool = False) -> Flag:
        """Return the flag of a field or an argument, for tyro.

        Args:
            name: name of the field or argument.
            kind: type of the field or argument.
            default: default value of the field or argument.
            aliases: additional names of the flag.
            follows: whether the default is computed from other fields.
        """
        whole, *said = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        if RARE in said and not self.all_flags:
            kind = Suppress[kind]  # type: ignore[misc]
        if attrs.has(type(default)):  # a spec keeps its own class
            return Flag(Annotated[(type(default), *get_args(kind)[1:])] if said else type(default), default)
        if not any(getattr(one, "metavar", None) for one in said) and (word := _word(whole, default)):
            kind = Annotated[kind, arg(metavar=word)]
        if any(default is one or default == one for one in _NOTHING if type(default) is type(one)):
            kind = Annotated[kind, arg(help_behavior_hint="")]
        if _POSITIONAL not in said and (aliases := aliases or self.letters.get(name, ())):
            kind = Annotated[kind, arg(aliases=aliases)]
        if default is tyro.MISSING_NONPROP:  # tyro cannot require an append flag
            return Flag(kind, default)
        if is_list(whole) and get_args(whole)[0] not in (int, float) and _POSITIONAL not in said:
            own, *said = get_args(kind) if get_origin(kind) is Annotated else (kind,)
            if "--data" in (f"--{name}", *aliases):
                own = tuple[own, ...]  # type: ignore[valid-type]
            missing = default in (inspect.Parameter.empty, tyro.MISSING)
            hint = "" if missing or not default else f"(default: {' '.join(map(str, default))})"
            kind = UseAppendAction[Annotated[(own, *said, arg(help_behavior_hint=hint))]]  # type: ignore[misc,valid-type]
            return Flag(kind, default if missing else (), partial(_listed, default))
        return Flag(_chosen_of(kind), default, _only_chosen) if follows else Flag(kind, default)


@attrs.frozen
class Flag:
    """The type and default of a flag for tyro, and the conversion of the parsed value.

    Args:
        kind: annotated type of the flag, for tyro.
        default: default value, for tyro.
        value: function from the value that tyro parsed to the value of the field or argument.
    """

    kind: Any
    default: Any
    value: Callable[[Any], Any] = lambda given: given


@attrs.frozen(eq=False)
class _Chosen:
    """A value from the command line for a field with a computed default."""

    value: Any


def _chosen_of(kind: Any) -> Any:
    """Return an annotated type that tyro parses into `_Chosen`."""
    read = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, parent_markers=set()))
    assert isinstance(read, PrimitiveConstructorSpec), (
        "a field that depends on other fields is a number, a word or a list of these"
    )
    return Annotated[kind, replace(read, instance_from_str=lambda given: _Chosen(read.instance_from_str(given)))]


def _only_chosen(given: Any) -> Any:
    return given.value if isinstance(given, _Chosen) else _LEFT_OUT


def _listed(default: Any, given: tuple[Any, ...]) -> Any:
    """Return the values of a repeatable list flag as one tuple; without values, return the default."""
    return tuple(chain.from_iterable(one if isinstance(one, tuple) else (one,) for one in given)) or default


def is_list(kind: Any) -> bool:
    """Return whether a type is a tuple of any length."""
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _word(kind: Any, default: object) -> str | None:
    """Return the placeholder for a flag's value in the help, such as `INT`; `|None` marks an optional value."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType) and len(parts) == 2 and parts[1] is types.NoneType:
        word = _word(parts[0], default)
        return f"{word}|None" if word and default is not None else word
    if is_list(kind):
        return _word(parts[0], None)
    return "{" + ",".join(map(str, parts)) + "}" if get_origin(kind) is Literal else _WORDS.get(kind)


@contextmanager
def specs_read(rules: FlagRules) -> Iterator[None]:
    """Let tyro parse attrs classes within the context; attrs computes the defaults of fields without a flag value."""
    registry = ConstructorRegistry()
    asking: list[StructTypeInfo] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind = get_origin(info.type) or info.type
        if asking or not isinstance(kind, type) or not attrs.has(kind):
            return None
        asking.append(info)
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking.clear()
        assert isinstance(spec, StructConstructorSpec), "tyro reads attrs classes"
        flags = {
            one.name: rules.flag(
                one.name,
                one.type,
                one.default,
                rules.aliases.get((kind, one.name), ()),
                follows=_follows(kind, info.default, one.name),
            )
            for one in spec.fields
        }
        make = rules.made_by.get(kind, spec.instantiate)

        def instantiate(**given: Any) -> Any:
            read = {name: flags[name].value(value) if name in flags else value for name, value in given.items()}
            return make(**{name: value for name, value in read.items() if value is not _LEFT_OUT})

        def field(one: StructFieldSpec) -> StructFieldSpec:
            if (kind, one.name) in rules.fixed:
                flags.pop(one.name)
                return replace(one, type=Suppress[Fixed[one.type]])  # type: ignore[misc,name-defined]
            return replace(one, type=flags[one.name].kind, default=flags[one.name].default)

        return replace(spec, fields=tuple(map(field, spec.fields)), instantiate=instantiate)

    with registry, warnings.catch_warnings():
        # A nested spec whose class differs from the field's default has the flags of its own class.
        warnings.filterwarnings("ignore", "The field", UserWarning)
        yield


def _follows(kind: type, given: object, name: str) -> bool:
    """Return whether a field has the default that attrs computes from other fields."""
    make = attrs.fields_dict(kind)[name].default
    takes_self: bool = isinstance(make, attrs.Factory) and make.takes_self  # type: ignore[arg-type,union-attr]
    return takes_self and isinstance(given, kind) and getattr(given, name) == make.factory(given)  # type: ignore[union-attr]


def parse(
    target: Callable[..., T],
    arguments: Sequence[str] | None = None,
    *,
    description: str,
    rules: FlagRules | None = None,
    **choices: Any,
) -> T:
    """Parse a command line, and call a class or function with the values.

    Args:
        target: a class or function. Positional-only arguments become positional; all other arguments become flags.
        arguments: the command line without the program name; None for `sys.argv`.
        description: formatted text at the start of `--help`.
        rules: rules that turn fields and arguments into flags; None for no special rules.
        choices: further keyword arguments of `tyro.cli`.

    Raises:
        SystemExit: with status 0 after printing the help, or with status 2 if the command line is not valid.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_asking = ASKING_ALL in given or not ASKING.isdisjoint(given)
    # tyro does not parse hidden flags.
    rules = attrs.evolve(rules or FlagRules(), all_flags=ASKING_ALL in given or not is_asking)
    choices.setdefault("prog", _program())
    choices.setdefault("config", (AvoidSubcommands,))
    if is_asking:
        say(f"{description}\n")
    readable = reader_of(target, rules) if inspect.isfunction(target) else target

    def read(arguments: list[str], **options: Any) -> Any:
        with specs_read(rules):
            return tyro.cli(readable, args=arguments, description="", **choices, **options)

    if is_asking:
        read(["--help"])
    try:
        with redirect_stderr(io.StringIO()):
            found, unknown = read(given, return_unknown_args=True)
    except SystemExit:
        found, unknown = None, given
    if unknown or found is None:
        _refuse_unknown(given, flags_of(target, rules, **choices), choices["prog"])
        read(given)  # prints the error
    return found() if readable is not target else found  # type: ignore[no-any-return]


def _refuse_unknown(arguments: Sequence[str], names: Collection[str], program: str) -> None:
    """Print the nearest known flags and exit with status 2 if there is an unknown flag."""
    for name in (one.partition("=")[0].replace("_", "-") for one in arguments if one.startswith("--")):
        if name not in names and name != "--":
            near = " or ".join(map(repr, difflib.get_close_matches(name, names)))
            hint = f"did you mean {near}?" if near else f"`{program} {ASKING_ALL}` lists all flags"
            say(f"{program}: unknown flag {name}; {hint}", error=True)
            sys.exit(2)


def _program() -> str:
    """Return the program name from the command line, with `python -m NAME` in place of a module's path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return sys.argv[0] if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def flags_of(target: Callable[..., Any], rules: FlagRules | None = None, **choices: Any) -> list[str]:
    """Return all flags of a command, including rare flags, as listed by `--help-all`."""
    with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        parse(target, [ASKING_ALL], description="", rules=rules, **choices)
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", said.getvalue())))


def reader_of(function: Callable[..., T], rules: FlagRules) -> Callable[..., Callable[[], T]]:
    """Return a function for tyro with the arguments of `function`; a call returns `function` bound to parsed values."""
    hints, given = get_type_hints(function, include_extras=True), inspect.signature(function).parameters
    flags, parameters = {}, []
    for name, one in given.items():
        # Only Python 3.10 wraps the type of an argument in `Optional` if the default is `None`.
        kind = hints[name]
        kind = get_args(kind)[0] if get_origin(kind) is Union and get_origin(get_args(kind)[0]) is Annotated else kind
        flags[name] = flag = rules.flag(name, kind, one.default)
        kind = Annotated[flag.kind, arg(name="")] if attrs.has(kind) else flag.kind
        parameters.append(one.replace(kind=one.KEYWORD_ONLY, annotation=kind, default=flag.default))

    def reader(**values: Any) -> Callable[[], T]:
        values = {name: flags[name].value(value) for name, value in values.items()}
        ahead = [values.pop(name) for name, one in given.items() if one.kind is one.POSITIONAL_ONLY]
        return partial(function, *ahead, **values)

    reader.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    reader.__annotations__ = {one.name: one.annotation for one in parameters}
    # Join continuation lines with the text of their argument.
    reader.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", inspect.cleandoc(function.__doc__ or ""))
    return reader
