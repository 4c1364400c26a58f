"""How `--help` shows the value of a flag: its placeholder, and its default if it has one.

tyro alone says `{None}|INT` of a number that may be left out, `[STR [STR ...]]` of several words, and
`(default: None)`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs
from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

_NAMES = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def told(kind: Any, default: object) -> Any:
    """Return the type of a flag so that its help has no default where that is nothing.

    Args:
        kind: the type.
        default: what is taken where the flag is not given.
    """
    nothing = default is None or default is False or default is inspect.Parameter.empty or default in ((), "")
    return Annotated[kind, arg(help_behavior_hint="")] if nothing else kind


@contextmanager
def told_of_specs() -> Iterator[None]:
    """Have the fields of attrs classes told as `told` has them, and in words for what goes behind them."""
    registry = ConstructorRegistry()
    asking: list[StructTypeInfo] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if asking or not isinstance(info.type, type) or not attrs.has(info.type):
            return None
        asking.append(info)
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking.clear()
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = [replace(one, type=told(named(one.type, one.default), one.default)) for one in spec.fields]
        return replace(spec, fields=tuple(fields))

    with registry:
        yield


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
        name = f"{name}..." if name else None
    return Annotated[kind, arg(metavar=name)] if name else kind


def _word(kind: Any) -> str | None:
    """Return what stands for a value: its type, or all that it may be."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return _NAMES.get(kind)
