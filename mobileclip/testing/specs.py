"""Conformance tests of specs: checks that specs are hashable, and that JSON keeps all their fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mobileclip.serialization import from_json, to_json
from mobileclip.strict import NOT_IN_JSON

_UNKNOWN = "no_field_has_this_name"


def check_spec(spec: Any, *, family: type | None = None) -> None:
    """Check that a spec is a hashable attrs instance, and that JSON keeps all its fields.

    A JSON round trip must keep all fields and their types, including fields that `==` ignores. The round trip must also
    keep the hash, unless a field holds a mapping. Reading JSON with an unknown key must raise an error that names the
    key.

    Args:
        spec: an instance of the spec class; set fields to non-default values, since a lost field gets its default.
        family: base class with a registry, such as `TeacherSpec`; JSON then contains the registered name.

    Raises:
        AssertionError: if a check fails; the message names the problem.

    Examples:
        >>> from mobileclip.losses import LossSpec, ReinforcedLossSpec
        >>> mobileclip.testing.check_spec(ReinforcedLossSpec(distill_weight=0.5), family=LossSpec)
        >>> mobileclip.testing.check_spec(0.5)
        Traceback (most recent call last):
        AssertionError: float is not an attrs class; decorate the class with @attrs.frozen(kw_only=True)
    """
    cls = type(spec)
    assert attrs.has(cls), f"{cls.__name__} is not an attrs class; decorate the class with @attrs.frozen(kw_only=True)"
    assert cls.__hash__ is not None, (
        f"{cls.__name__} is not hashable; decorate the class with @attrs.frozen(kw_only=True)"
    )
    for read_as in (cls, *([family] if family is not None else [])):
        try:
            text = to_json(spec, unstructure_as=read_as)
        except (TypeError, ValueError) as error:
            raise AssertionError(
                f"{cls.__name__} cannot be written to JSON as a {read_as.__name__}: {error}"
            ) from error
        try:
            read: Any = from_json(text, read_as)
        except ValueError as error:
            raise AssertionError(f"{cls.__name__} can be written to JSON but not read back: {error}") from error
        value = json.loads(text)
        for difference in _differences(spec, read, cls.__name__):
            raise AssertionError(f"{difference} after a JSON round trip")
        assert read == spec, f"{cls.__name__} changes in a JSON round trip: got {read!r}, expected {spec!r}"
        again = to_json(read, unstructure_as=read_as, indent=1)
        assert json.loads(again) == value, f"the JSON of {cls.__name__} changes in a round trip: {again}"
        if _is_hashed(spec):
            assert hash(read) == hash(spec), f"the hash of {cls.__name__} changes in a JSON round trip"
        _check_unknown_key(value, read_as)


def _differences(one: Any, other: Any, place: str) -> Iterator[str]:
    if type(one) is not type(other):
        yield f"{place} is {other!r} ({type(other).__name__}), not {one!r} ({type(one).__name__}),"
    elif attrs.has(type(one)):
        for field in attrs.fields(type(one)):
            if not NOT_IN_JSON.items() <= field.metadata.items():
                yield from _differences(getattr(one, field.name), getattr(other, field.name), f"{place}.{field.name}")
    elif isinstance(one, Mapping) and one.keys() == other.keys():
        for key, item in one.items():
            yield from _differences(item, other[key], f"{place}[{key!r}]")
    elif isinstance(one, tuple) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(left, right, f"{place}[{index}]")
    elif one != other:
        yield f"{place} is {other!r}, not {one!r},"


def _is_hashed(value: Any) -> bool:
    """Return whether a value must have a hash: True unless a compared field contains a mapping."""
    if attrs.has(type(value)):
        return all(_is_hashed(getattr(value, field.name)) for field in attrs.fields(type(value)) if field.eq)
    if isinstance(value, tuple):
        return all(map(_is_hashed, value))
    return not isinstance(value, Mapping)


def _check_unknown_key(value: dict[str, Any], cls: type) -> None:
    try:
        from_json(json.dumps(value | {_UNKNOWN: 1}), cls)
    except ValueError as error:
        refusal = str(error)
    else:
        raise AssertionError(f"{cls.__name__} accepts an unknown key; a misspelled name would go unnoticed")
    assert _UNKNOWN in refusal, f"the error for an unknown key of {cls.__name__} does not name the key: {refusal}"
