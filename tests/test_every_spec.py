"""Specs are values that JSON holds whole: one property over every class, found by itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec
from mobileclip.losses import LossSpec
from mobileclip.strict import NOT_IN_JSON, strict
from mobileclip.testing import check_spec
from tests.errors import fails
from tests.every_spec import changed, families, made, spec_classes
from tests.recipes.choices import ALL, runs_of


def test_json_holds_every_field_of_every_spec():
    """A class of which no instance can be thought of, or no other value of a field than its default, is an error."""
    for cls in spec_classes():
        for spec in (*made(cls), *(other for _, other in changed(cls))):
            check_spec(spec)
        kinds = {one.kind for one in inspect.signature(cls).parameters.values()}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY}, f"a field between two others would change code that has {cls}"


def test_json_says_which_member_of_its_family_a_registered_spec_is():
    found = [(cls, base) for cls in spec_classes() for base in families(cls)]
    for cls, base in found:
        for spec in made(cls):
            check_spec(spec, family=base)
    assert {base.__name__ for _, base in found} >= {
        "CaptionerSpec", "ImageEncoderSpec", "LossSpec", "OptimizerSpec", "Schedule", "Source", "TeacherSpec",
        "TextEncoderSpec", "TokenMixerSpec",
    }  # fmt: skip


def test_what_json_leaves_out_is_known():
    fields = [(f"{cls.__name__}.{field.name}", field) for cls in spec_classes() for field in attrs.fields(cls)]
    left_out = [name for name, field in fields if NOT_IN_JSON.items() <= field.metadata.items()]
    assert left_out == ["TokenizerFile.content"]


def test_json_holds_every_published_choice():
    for recipe in ALL:
        for spec in runs_of(recipe).values():
            check_spec(spec)
    for registry, family in ((models, None), (image_encoders, ImageEncoderSpec), (text_encoders, TextEncoderSpec)):
        for spec in registry.values():
            check_spec(spec, family=family)


@attrs.frozen(kw_only=True, field_transformer=strict)
class Fine:
    number: int = 1
    names: tuple[str, ...] = attrs.field(default=(), converter=tuple, eq=False)
    lost: int = attrs.field(default=1, metadata=NOT_IN_JSON, eq=False)


@attrs.frozen(kw_only=True)
class Odd:
    names: tuple[str, ...] = attrs.field(default=(), eq=False, converter=lambda names: (*names, *names[:1]))
    anything: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.mutable(kw_only=True)
class Mutable:
    number: int = 1


@pytest.mark.parametrize(
    ("spec", "family", "said"),
    [
        (Odd(names=("a",)), None, "Odd.names is ('a', 'a', 'a'), not ('a', 'a'), after a JSON round trip"),
        (Odd(anything={"a": (1,)}), None, "Odd.anything['a'] is [1] (list), not (1,) (tuple), after a JSON round trip"),
        (Mutable(), None, "Mutable is not hashable"),
        (3, None, "int is not an attrs class"),
        (Fine(), LossSpec, "Fine cannot be written to JSON as a LossSpec: Fine is not a registered loss"),
    ],
)
def test_what_is_wrong_is_told(spec, family, said):
    check_spec(Fine(number=2, names=["a"]))
    with fails(AssertionError, said):
        check_spec(spec, family=family)
