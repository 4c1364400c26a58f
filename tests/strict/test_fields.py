"""A field holds what its annotation says: each kind of value against each kind of annotation."""

from types import NoneType
from typing import Any, Literal

import attrs
import pytest
from attrs import validators

from mobileclip.strict import fitting, strict
from tests.errors import fails

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
    ("value", "annotation", "error"),
    [
        (True, int, (ValueError, "True", "bool")),
        (3.0, int, (ValueError, "3.0", "float")),
        ("3", int, (ValueError, "3", "str")),
        (MOST + 1, int, (ValueError, "65")),
        (-MOST - 1, float, (ValueError, "65")),
        (True, float, (ValueError, "True", "bool")),
        ("0.5", float, (ValueError, "0.5", "str")),
        (float("inf"), float, (ValueError, "inf", "float")),
        (float("nan"), float, (ValueError, "nan", "float")),
        (3, str, (ValueError, "3", "int")),
        (1, bool, (ValueError, "1", "int")),
        ("b", Literal["a", 1], (ValueError, "'a', 1", "b", "str")),
        (True, Literal["a", 1], (ValueError, "'a', 1", "True", "bool")),
        (0, NoneType, (ValueError, "null", "0", "int")),
        ("x", int | None, (ValueError, "x", "str")),
        ("x", int | bool, (ValueError, "x", "str")),
        ([1], tuple[int, ...], (ValueError, "[1]", "list")),
        ((1,), tuple[int, int], (ValueError, "2", "1")),
        ((1, 2, 3), tuple[int, int], (ValueError, "2", "3")),
        ((1, 2, "x"), tuple[int, ...], (ValueError, "2", "x", "str")),
        ((1, 2), tuple[int, str], (ValueError, "1", "2", "int")),
        ("x" * 78, int, (ValueError, "x" * 78, "str")),
        ("x" * 79, int, (ValueError, "x" * 79, "str")),
        pytest.param(10**5000, str, (ValueError, "something", "int"), id="digits"),
    ],
)
def test_what_does_not_fit_is_told(value, annotation, error):
    with fails(*error) as caught:
        fitting(value, annotation)
    assert ("; or " in str(caught.value)) == (annotation == int | bool)


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
    with fails(ValueError, "size", "Inner", "x", "str"):
        Inner(size="x")
    with fails(ValueError, "1"):
        Inner(size=0)
    with fails(ValueError, "names", "Outer", "value 1", "2", "int"):
        Outer(names=("a", 2))
    with fails(ValueError, "share", "Outer", "None", "NoneType"):
        Outer(share=None)
    assert Outer(size=2, share=1) == Outer(size=2, share=1.0)


def test_an_inherited_field_is_checked_once():
    (size,) = (field for field in attrs.fields(Outer) if field.name == "size")
    assert size.validator is attrs.fields(Inner).size.validator
