"""A field holds what its annotation says: each kind of value against each kind of annotation."""

import re
from types import NoneType
from typing import Any, Literal

import attrs
import pytest
from attrs import validators

from mobileclip.strict import fitting, strict

MOST = 1 << 64


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int),
        (MOST, int),
        (-MOST, int),
        (0.5, float),
        (MOST, float),
        ("", str),
        (False, bool),
        ("a", Literal["a", 1]),
        (1, Literal["a", 1]),
        (None, int | None),
        (None, NoneType),
        ((), tuple[int, ...]),
        ((1, 2, 3), tuple[int, ...]),
        ((1, "a"), tuple[int, str]),
        (("a", None), tuple[str | None, ...]),
        ([1], list[int]),
        (object, Any),
    ],
)
def test_what_fits_is_returned(value, annotation):
    assert fitting(value, annotation) == value


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        (True, int, "must be a whole number, but is True (bool)"),
        (3.0, int, "must be a whole number, but is 3.0 (float)"),
        ("3", int, "must be a whole number, but is '3' (str)"),
        (MOST + 1, int, "a whole number of 65 bits is too large"),
        (-MOST - 1, float, "a whole number of 65 bits is too large"),
        (True, float, "must be a number, but is True (bool)"),
        ("0.5", float, "must be a number, but is '0.5' (str)"),
        (float("inf"), float, "must be a finite number, but is inf (float)"),
        (float("nan"), float, "must be a finite number, but is nan (float)"),
        (3, str, "must be a text, but is 3 (int)"),
        (1, bool, "must be true or false, but is 1 (int)"),
        ("b", Literal["a", 1], "must be one of 'a', 1, but is 'b' (str)"),
        (True, Literal["a", 1], "must be one of 'a', 1, but is True (bool)"),
        (0, NoneType, "must be null, but is 0 (int)"),
        ("x", int | None, "must be a whole number, but is 'x' (str)"),
        ("x", int | bool, "must be a whole number, but is 'x' (str); or must be true or false, but is 'x' (str)"),
        ([1], tuple[int, ...], "must be a tuple, but is [1] (list)"),
        ((1,), tuple[int, int], "must have 2 values, but has 1"),
        ((1, 2, 3), tuple[int, int], "must have 2 values, but has 3"),
        ((1, 2, "x"), tuple[int, ...], "value 2 must be a whole number, but is 'x' (str)"),
        ((1, 2), tuple[int, str], "value 1 must be a text, but is 2 (int)"),
        ("x" * 78, int, f"must be a whole number, but is '{'x' * 78}' (str)"),
        ("x" * 79, int, f"must be a whole number, but is '{'x' * 79}... (str)"),
        pytest.param(10**5000, str, "must be a text, but is something (int)", id="digits"),
    ],
)
def test_what_does_not_fit_is_told(value, annotation, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        fitting(value, annotation)


def test_a_whole_number_is_a_float_where_no_whole_number_will_do():
    for annotation, kind in ((float, float), (float | None, float), (float | int, int), (int | float, int)):
        assert type(fitting(2, annotation)) is kind


@attrs.frozen(kw_only=True, field_transformer=strict)
class Inner:
    size: int = attrs.field(default=1, validator=validators.ge(1))
    names: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, field_transformer=strict)
class Outer(Inner):
    share: float = 0.5


def test_a_spec_checks_types_before_its_own_validators_and_names_the_field():
    with pytest.raises(ValueError, match=r"^'size' of Inner: must be a whole number, but is 'x' \(str\)$"):
        Inner(size="x")
    with pytest.raises(ValueError, match="must be >= 1"):
        Inner(size=0)
    with pytest.raises(ValueError, match=r"^'names' of Outer: value 1 must be a text, but is 2 \(int\)$"):
        Outer(names=("a", 2))
    with pytest.raises(ValueError, match=r"^'share' of Outer: must be a number, but is None \(NoneType\)$"):
        Outer(share=None)
    assert Outer(size=2, share=1) == Outer(size=2, share=1.0)


def test_an_inherited_field_is_checked_once():
    (size,) = (field for field in attrs.fields(Outer) if field.name == "size")
    assert size.validator is attrs.fields(Inner).size.validator
