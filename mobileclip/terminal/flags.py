"""How tyro reads specs: short names, lists one value at a time, fields that follow others, and a help in words."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs
from tyro._singleton import EXCLUDE_FROM_CALL
from tyro.conf import Fixed, Positional, Suppress, UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

_NAMES = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}

Field = tuple[type, str]
"""A class, and a field of it."""


def told(kind: Any, default: object) -> Any:
    """Return the type of a flag so that its help has no default where that is nothing.

    Args:
        kind: the type.
        default: what is taken where the flag is not given.
    """
    nothing = default is None or default is False or default is inspect.Parameter.empty or default in ((), "")
    return Annotated[kind, arg(help_behavior_hint="")] if nothing else kind


@contextmanager
def told_of_specs(
    aliases: Mapping[Field, tuple[str, ...]] | None = None,
    fixed: Collection[Field] = (),
    made_by: Mapping[type, Callable[..., Any]] | None = None,
    letters: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[None]:
    """Read attrs classes as `_as_flag` has their fields.

    Args:
        aliases: short names of fields.
        fixed: fields that are no flags.
        made_by: what makes an instance of some classes, in place of the class.
        letters: short names of fields of any class.
    """
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
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = [
            replace(one, type=Positional[one.type])
            if attrs.fields_dict(kind)[one.name].metadata.get("place")
            else _as_flag(one, _follows(kind, info.default, one.name), (aliases or {}).get((kind, one.name)) or (letters or {}).get(one.name, ()))
            if (kind, one.name) not in fixed
            else replace(one, type=Suppress[Fixed[one.type]])
            for one in spec.fields
        ]
        return replace(spec, fields=tuple(fields), instantiate=(made_by or {}).get(kind, spec.instantiate))

    with registry:
        yield


def _follows(kind: type, given: object, name: str) -> bool:
    """Return whether a field has what attrs makes of the other fields: it follows them where they are changed."""
    make = attrs.fields_dict(kind)[name].default
    takes_self = isinstance(make, attrs.Factory) and make.takes_self  # type: ignore[arg-type]
    return takes_self and isinstance(given, kind) and getattr(given, name) == make.factory(given)  # type: ignore[union-attr]


def _as_flag(field: StructFieldSpec, follows: bool, aliases: tuple[str, ...]) -> StructFieldSpec:  # noqa: FBT001
    """Return a field with its short names: a spec is of the class that it has, an empty list has a value at a time."""
    if attrs.has(type(field.default)):
        said = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
        own = type(field.default)
        return replace(field, type=Annotated[(own, *said)] if said else own)
    kind = told(named(field.type, field.default), field.default)
    whole = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
    if is_list(whole) and field.default == () and not follows:
        kind = UseAppendAction[kind]
    if aliases:
        kind = Annotated[kind, arg(aliases=aliases)]
    return replace(field, type=kind, default=EXCLUDE_FROM_CALL if follows else field.default)


def is_list(kind: Any) -> bool:
    """Return whether a type is of any number of values."""
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def named(kind: Any, default: object) -> Any:
    """Return a type of one value or of several with a word for these; `None` is one where it is not the default.

    Args:
        kind: the type.
        default: what is taken where the flag is not given.
    """
    if any(getattr(one, "metavar", None) for one in getattr(kind, "__metadata__", ())):
        return kind  # it has one already
    whole = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    parts = get_args(whole)
    name = None
    if get_origin(whole) in (Union, types.UnionType) and len(parts) == 2 and parts[1] is types.NoneType:
        name = _word(parts[0])
        name = f"{name}|None" if name and default is not None else name
    elif get_origin(whole) is tuple and parts[1:] == (...,):
        name = _word(parts[0])
        name = f"{name}..." if name and default else name
    return Annotated[kind, arg(metavar=name)] if name else kind


def _word(kind: Any) -> str | None:
    """Return what stands for a value: its type, or all that it may be."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return _NAMES.get(kind)
