"""Converts specs to JSON and back: every spec round-trips, types are strict, and unknown keys are errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import attrs

from mobileclip.machine import raise_machine_fault
from mobileclip.strict import NOT_IN_JSON, fitting, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from cattrs import Converter

    from mobileclip.registry import Registry

T = TypeVar("T")

_MAX_REASONS = 5
_MAX_REASON_CHARACTERS = 240

_spec_bases: dict[type, tuple[Registry[Any], tuple[type, ...]]] = {}


def register_spec_base(base: type, members: Registry[Any], *, own: tuple[type, ...] = ()) -> None:
    """Let fields of type `base` hold specs of the classes registered in `members`; JSON names the class under `kind`.

    Args:
        base: class in the annotation of the fields.
        members: registry of concrete attrs subclasses of `base`, or of such classes with arguments in a
            `functools.partial`. In JSON, the name of a partial stands for its arguments, which other keys override.
        own: classes that JSON stores without a `kind`. If not empty, fields may also hold instances of unregistered
            classes, with the `kind` `MODULE:CLASS`; import the module before reading the JSON.
    """
    _spec_bases[base] = members, own
    _converter.cache_clear()


def to_json(spec: Any, *, unstructure_as: type | None = None, indent: int | None = None) -> str:
    """Return `spec`, an attrs instance, as JSON text.

    Args:
        spec: spec to serialize.
        unstructure_as: base class from `register_spec_base`, if `from_json` will read the text as this base class; the
            text then contains the spec's `kind`. None if `from_json` will read the text as the spec's own class.
        indent: spaces per level; None for one line.

    Raises:
        ValueError: if a number is NaN or infinite, which JSON does not support; or a field holds a subclass of its
            annotated class, since JSON would hold only the parent's fields.
    """
    return json.dumps(_converter().unstructure(spec, unstructure_as=unstructure_as), indent=indent, allow_nan=False)


def from_json(text: str, cls: type[T]) -> T:
    """Return the spec of class `cls` that `to_json` wrote.

    The function does not convert values, for example integers to strings or booleans; a tuple must have the annotated
    length.

    Raises:
        ValueError: if the text is not JSON, a key is unknown, missing or repeated, or a value has the wrong type, is
            not finite, or is invalid for the spec.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"the text is not valid JSON for a {cls.__name__}: {error}") from None
    return from_value(value, cls)


def from_value(value: Any, cls: type[T]) -> T:
    """Return the spec of class `cls` from a parsed JSON value; see `from_json`."""
    from cattrs import transform_error

    try:
        return _converter().structure(value, cls)
    except Exception as error:
        raise_machine_fault(error)
        reasons = transform_error(error, path=cls.__name__, format_exception=_explain)
        more = f"; and {len(reasons) - _MAX_REASONS} more" if len(reasons) > _MAX_REASONS else ""
        raise ValueError(
            f"the JSON is not a valid {cls.__name__}: {'; '.join(reasons[:_MAX_REASONS])}{more}"
        ) from error


def _explain(error: BaseException, _expected: type | None) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl) if field.metadata != NOT_IN_JSON]
        unknown = ", ".join(repr(key[:40]) for key in sorted(error.extra_fields)[:_MAX_REASONS])
        return f"unknown key {unknown}; known: {', '.join(known)}"
    if isinstance(error, KeyError):
        return f"required key {error} is missing"
    said = str(error) or type(error).__name__
    return said if len(said) <= _MAX_REASON_CHARACTERS else f"{said[:_MAX_REASON_CHARACTERS]}..."


@cache
def _converter() -> Converter:
    from cattrs.preconf.json import make_converter

    converter = make_converter(forbid_extra_keys=True)
    for scalar in (int, float, str, bool):
        # Register by class: cattrs calls its own hooks, which convert values, before any predicate.
        converter.register_structure_hook(scalar, fitting)
    converter.register_structure_hook(Path, lambda value, _: Path(fitting(value, str)))
    converter.register_structure_hook_func(_is_plain, fitting)
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) is tuple, lambda cls: _tuple_hook(converter, cls)
    )
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) is Mapping, lambda cls: _mapping_hook(converter, cls)
    )
    converter.register_structure_hook_factory(attrs.has, lambda cls: _object_hook(converter, cls))
    converter.register_unstructure_hook_factory(attrs.has, lambda cls: _object_unstructured(converter, cls))
    for base, (members, own) in _spec_bases.items():
        _hook_family(converter, base, members, own)
    return converter


def _origin(cls: Any) -> object:
    return get_origin(cls)


def _is_plain(cls: Any) -> bool:
    """Whether `fitting` checks the type completely: numbers, booleans, strings, literals and unions of these."""
    if get_origin(cls) in (Union, UnionType):
        return all(_is_plain(each) for each in get_args(cls))
    return cls in (int, float, str, bool, NoneType) or get_origin(cls) is Literal


def _tuple_hook(converter: Converter, cls: Any) -> Callable[[Any, Any], Any]:
    from cattrs.errors import IterableValidationError, IterableValidationNote

    kinds = get_args(cls)
    of_any_length = len(kinds) == 2 and kinds[1] is ...

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list, not {type(value).__name__}")
        if not of_any_length and len(value) != len(kinds):
            raise ValueError(f"must have {len(kinds)} values, but has {len(value)}")
        items: list[Any] = []
        errors: list[Exception] = []
        for index, (item, kind) in enumerate(
            zip(value, kinds[:1] * len(value) if of_any_length else kinds, strict=True)
        ):
            try:
                items.append(converter.structure(item, kind))
            except Exception as error:  # noqa: BLE001, PERF203  every item's reasons are reported, with its place
                note = IterableValidationNote(f"item {index}", index, kind)
                vars(error).setdefault("__notes__", []).append(note)
                errors.append(error)
                if len(errors) > _MAX_REASONS:
                    break
        if errors:
            raise IterableValidationError("values of a list", errors, cls)
        return tuple(items)

    return structure


def _mapping_hook(converter: Converter, cls: Any) -> Callable[[Any, Any], dict[str, Any]]:
    _, kind = get_args(cls)

    def structure(value: Any, _: Any) -> dict[str, Any]:
        _require_object(value)
        return {key: item if kind is Any else converter.structure(item, kind) for key, item in value.items()}

    return structure


def _left_out(cls: Any) -> dict[str, Any]:
    """Return cattrs overrides for the fields that JSON never holds."""
    from cattrs.gen import override

    return {
        field.name: override(omit=True) for field in attrs.fields(cls) if NOT_IN_JSON.items() <= field.metadata.items()
    }


def _object_unstructured(converter: Converter, cls: Any) -> Callable[[Any], dict[str, Any]]:
    from cattrs.gen import make_dict_unstructure_fn

    write, exact = make_dict_unstructure_fn(cls, converter, **_left_out(cls)), get_origin(cls) or cls

    def unstructure(value: Any) -> dict[str, Any]:
        if type(value) is not exact and isinstance(value, exact):
            raise ValueError(
                f"a field of type {exact.__name__} contains an instance of the subclass {type(value).__name__}, but "
                f"JSON would store only the fields of {exact.__name__}; pass a {exact.__name__}, or register the "
                "classes with mobileclip.serialization.register_spec_base"
            )
        return write(value)

    return unstructure


def _object_hook(converter: Converter, cls: Any) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    structure_fields = (
        make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **_left_out(cls))
        if _left_out(cls)
        else converter.gen_structure_attrs_fromdict(cls)
    )

    def structure(value: Any, kind: Any) -> Any:
        _require_object(value)
        return structure_fields(value, kind)

    return structure


def _require_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, not {type(value).__name__}")


def _hook_family(converter: Converter, base: type, members: Registry[Any], own: tuple[type, ...]) -> None:
    def unstructure(spec: Any) -> dict[str, Any]:
        for name, member in members.items():
            if isinstance(member, partial) and member() == spec:
                return {"kind": name}
        if type(spec) in own:
            return dict(converter.unstructure(spec, unstructure_as=type(spec)))
        kind = _kind_of(type(spec), members, is_named_by_module=bool(own))
        return {"kind": kind, **converter.unstructure(spec, unstructure_as=type(spec))}

    def structure(value: Any, _: type) -> Any:
        if own and isinstance(value, dict) and "kind" not in value:
            return converter.structure(value, max(own, key=lambda kind: len(value.keys() & attrs.fields_dict(kind))))
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise ValueError(f"expected an object with a 'kind', one of: {', '.join(sorted(members))}")
        rest = {key: item for key, item in value.items() if key != "kind"}
        member = _class_of(value["kind"]) if own and ":" in value["kind"] else members.resolve(value["kind"])
        if isinstance(member, partial):
            return converter.structure({**member.keywords, **rest}, cast("type[Any]", member.func))
        return converter.structure(rest, member)

    converter.register_unstructure_hook_func(lambda cls: cls is base, unstructure)
    converter.register_structure_hook_func(lambda cls: cls is base, structure)


def _kind_of(cls: type, members: Registry[Any], *, is_named_by_module: bool) -> str:
    """Return the `kind` that stands for a class in JSON."""
    for name, member in members.items():
        if member is cls:
            return name
    if not is_named_by_module:
        raise ValueError(f"{cls.__name__} is not a registered {members.label}; register the class first")
    kind = f"{cls.__module__}:{cls.__qualname__}"
    if _found(kind) is not cls:
        raise ValueError(
            f"{cls.__name__} is not an attrs class at the top level of a module, so JSON cannot name the class; move "
            "the class to the top level, or register the class"
        )
    return kind


def _class_of(kind: str) -> type:
    found = _found(kind)
    if found is None:
        raise ValueError(f"unknown class {kind[:80]!r}; import its module first, or pass the module to --import")
    return found


def _found(kind: str) -> type | None:
    """Return an attrs class of an imported module, without importing anything, since the text may be untrusted."""
    module, _, name = kind.partition(":")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and attrs.has(found) else None
