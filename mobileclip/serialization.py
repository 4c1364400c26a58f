"""Specs to JSON and back: every spec round-trips, and an unknown key is an error that names it."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

if TYPE_CHECKING:
    from cattrs import Converter

    from mobileclip.registry import Registry

T = TypeVar("T")

_open_families: dict[type, Registry[Any]] = {}


def open_family(base: type, members: Registry[Any]) -> None:
    """Let fields typed `base` hold any spec class registered in `members`; JSON names the class under `kind`.

    Args:
        base: the class that fields are annotated with.
        members: names to concrete attrs classes below `base`.
    """
    _open_families[base] = members
    _converter.cache_clear()


def to_json(spec: Any, *, unstructure_as: type | None = None, indent: int | None = None) -> str:
    """Return `spec`, an attrs instance, as JSON text.

    Args:
        spec: the value.
        unstructure_as: the class to read it back as, where that is an open family: the text then says which member.
        indent: spaces per level; None for one line.
    """
    return json.dumps(_converter().unstructure(spec, unstructure_as=unstructure_as), indent=indent)


def from_json(text: str, cls: type[T]) -> T:
    """Return the spec of class `cls` that `to_json` wrote.

    Raises:
        ValueError: if the text is not JSON, a key is unknown or missing, or a value is refused by the spec.
    """
    from cattrs import transform_error

    try:
        return _converter().structure(json.loads(text), cls)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON, so it holds no {cls.__name__}: {error}") from None
    except Exception as error:
        reasons = "; ".join(transform_error(error, path=cls.__name__, format_exception=_explain))
        raise ValueError(f"this JSON is not a valid {cls.__name__}: {reasons}") from error


def _explain(error: BaseException, _expected: type | None) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        return f"unknown key {', '.join(map(repr, sorted(error.extra_fields)))}; known: {', '.join(known)}"
    if isinstance(error, KeyError):
        return f"required key {error} is missing"
    return str(error) or type(error).__name__


@cache
def _converter() -> Converter:
    from cattrs.preconf.json import make_converter

    converter = make_converter(forbid_extra_keys=True)
    for base, members in _open_families.items():
        _hook_family(converter, base, members)
    return converter


def _hook_family(converter: Converter, base: type, members: Registry[Any]) -> None:
    def unstructure(spec: Any) -> dict[str, Any]:
        kind = next((name for name, cls in members.items() if cls is type(spec)), None)
        if kind is None:
            raise ValueError(f"{type(spec).__name__} is not a registered {members.label}; register the class first")
        return {"kind": kind, **converter.unstructure(spec, unstructure_as=type(spec))}

    def structure(value: Any, _: type) -> Any:
        if not isinstance(value, dict) or "kind" not in value:
            raise ValueError(f"expected an object with a 'kind', one of: {', '.join(sorted(members))}")
        rest = {key: item for key, item in value.items() if key != "kind"}
        return converter.structure(rest, members.resolve(value["kind"]))

    converter.register_unstructure_hook_func(lambda cls: cls is base, unstructure)
    converter.register_structure_hook_func(lambda cls: cls is base, structure)
