import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from mobileclip import specs
from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec, MCiSpec, StageSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.serialization import from_json, to_json
from tests.errors import fails

KEYS = ("kind", "depth", "dim", "size", "mean", "stages", "input", "width", "nonsense")


def test_a_family_says_which_member_it_holds():
    text = to_json(specs.mci0(), unstructure_as=ImageEncoderSpec)
    assert text.startswith('{"kind": "mci"')
    assert from_json(text, ImageEncoderSpec) == specs.mci0()
    with fails(ValueError, "did you mean 'mci'"):
        from_json(text.replace('"mci"', '"mcii"'), ImageEncoderSpec)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"size": 256, "crop": 1}', ("unknown key 'crop'; known: size",)),
        ("{}", ("required key 'size' is missing",)),
        ('{"size": -1}', ("'size' must be > 0",)),
        ('{"size": 256, "interpolation": "nearest"}', ("nearest",)),
        ('{"size": 256, "mean": [0, 0]}', ("'mean' of ImageInput: has 2 values",)),
        ("{", ()),
    ],
)
def test_bad_text_is_explained(text, named):
    with fails(ValueError, *named):
        from_json(text, ImageInput)


def test_an_unknown_key_deep_inside_is_named_with_its_path():
    text = to_json(specs.mobileclip_s0()).replace('"depth": 2', '"deph": 2', 1)
    with fails(ValueError, "unknown key 'deph'", "stages"):
        from_json(text, DualEncoderSpec)


def test_a_class_that_is_not_registered_is_not_written():
    @attrs.frozen(kw_only=True)
    class OwnSpec(MCiSpec):
        pass

    own = DualEncoderSpec(image=OwnSpec(stages=(StageSpec(dim=8, depth=1),)), text=specs.text_base())
    with fails(ValueError, "OwnSpec", "image encoder family"):
        to_json(own)


def test_inputs_refuse_nonsense():
    with fails(ValueError):
        ImageInput(size=8, std=(0.0, 1.0, 1.0))
    for name, value, *said in (("context_length", 2), ("pad_id", -1, ">= 0"), ("pad_id", 49408, "49408 ids")):
        with fails(ValueError, name, *said):
            TextInput(**{name: value})
    assert (TextInput().start_id, TextInput().end_id) == (49406, 49407)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ('"8"', ("8", "str")),
        ("8.0", ("8.0",)),
        ("true", ("True",)),
        ("null", ("None",)),
        ("9" * 100, ("100",)),
        (str(2**65), ("66",)),
        ("NaN", ("NaN",)),
        ("1e999", ()),
        ('8, "size": 9', ("size",)),
        ("[" * 100_000, ()),
    ],
)
def test_nothing_is_converted_on_the_way(value, named):
    with fails(ValueError, *named):
        from_json(f'{{"size": {value}}}', ImageInput)


def test_python_is_held_to_the_annotations_too():
    for wrong in ({"size": "8"}, {"size": True}, {"size": 8.0}, {"size": 8, "mean": [0.0, 0.0, 0.0]}):
        with fails(ValueError, "ImageInput"):
            ImageInput(**wrong)
    assert ImageInput(size=8, mean=(0, 1, 0)) == from_json('{"size": 8, "mean": [0, 1, 0]}', ImageInput)
    assert ImageInput(size=8, mean=(0, 1, 0)).mean == (0.0, 1.0, 0.0), "a whole number will do as a float"
    for wrong in ((0.0, 0.0), (float("inf"), 0.0, 0.0), (float("nan"), 0.0, 0.0)):
        with fails(ValueError, "'mean'", "ImageInput"):
            ImageInput(size=8, mean=wrong)


def test_infinity_is_not_written():
    @attrs.frozen(kw_only=True)
    class Anything:
        value: float

    with fails(ValueError):
        to_json(Anything(value=float("inf")))


@attrs.frozen(kw_only=True)
class Everything:
    """A field of each kind that specs have."""

    either: int | str = 1
    choice: Literal["a", "b"] | None = None
    part: ImageInput | None = None
    parts: tuple[ImageInput, ...] = ()
    pair: tuple[int, str] = (1, "a")
    sizes: Mapping[str, int] = attrs.field(factory=dict)
    inputs: Mapping[str, ImageInput] = attrs.field(factory=dict)
    anything: Mapping[str, Any] = attrs.field(factory=dict)
    place: Path | None = None


@pytest.mark.parametrize(
    "changes",
    [
        {"either": "x"},
        {"choice": "b"},
        {"part": ImageInput(size=8)},
        {"parts": (ImageInput(size=8), ImageInput(size=9))},
        {"pair": (2, "b")},
        {"sizes": {"a": 1}, "inputs": {"b": ImageInput(size=8)}, "anything": {"c": [1, {"d": None}]}},
        {"place": Path("a/b")},
    ],
)
def test_every_kind_of_field_comes_back(changes):
    spec = Everything(**changes)
    found = from_json(to_json(spec), Everything)
    assert found == spec
    for name, value in changes.items():
        assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"either": 1.5}', ("1.5", "float")),
        ('{"choice": "c"}', ("a', 'b", "c", "str")),
        ('{"part": 3}', ("int",)),
        ('{"parts": {"size": 8}}', ("dict",)),
        ('{"parts": [{"size": 8}, {"size": 0}]}', ("'size' must be > 0",)),
        ('{"pair": [1]}', ("2", "1")),
        ('{"pair": [1, 2]}', ("2", "int")),
        ('{"sizes": [1]}', ("list",)),
        ('{"sizes": {"a": "1"}}', ("1", "str")),
        ('{"inputs": {"a": 1}}', ("int",)),
        ('{"place": 3}', ("3", "int")),
    ],
)
def test_every_kind_of_field_is_held_to_its_annotation(text, named):
    with fails(ValueError, *named):
        from_json(text, Everything)


def test_the_first_items_of_a_list_that_are_wrong_are_all_named():
    with fails(ValueError, "Everything") as caught:
        from_json('{"parts": [1, {"size": 8}, 2, {"size": 0}]}', Everything)
    assert [f"Everything.parts[{place}]" in str(caught.value) for place in range(4)] == [True, False, True, True]
    with fails(ValueError, "and 1 more"):
        from_json(f'{{"parts": {[0] * 1000}}}', Everything)


def complain(_, __, value):
    raise ValueError("x" * value)


@attrs.frozen(kw_only=True)
class Talkative:
    size: int = attrs.field(validator=complain)


@pytest.mark.parametrize(("size", "said"), [(240, "x" * 240), (241, "x" * 240 + "...")])
def test_a_reason_is_cut_where_it_is_too_long(size, said):
    with fails(ValueError, f"{said} @ Talkative"):
        from_json(f'{{"size": {size}}}', Talkative)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON, place=st.integers(0, 40))
def test_whatever_stands_somewhere_in_a_spec(value, place):
    whole = json.loads(to_json(specs.mobileclip_s0()))
    spots = list(places(whole))
    parent, key = spots[place % len(spots)]
    parent[key] = value
    try:
        read = from_json(json.dumps(whole), DualEncoderSpec)
    except ValueError as error:
        message = str(error)
        assert 0 < len(message) < 2000
    else:
        assert from_json(to_json(read), DualEncoderSpec) == read


def places(value):
    """Every place in a value that was read from JSON, as what holds it and its key there."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(entries):
        yield value, key
        yield from places(item)


def test_a_subclass_of_which_json_would_hold_the_parent_is_refused():
    @attrs.frozen(kw_only=True)
    class Tilted(ImageInput):
        degrees: float = 10.0

    with fails(ValueError, "ImageInput", "Tilted"):
        to_json(attrs.evolve(specs.mci0(), input=Tilted(size=256)), unstructure_as=ImageEncoderSpec)
    assert json.loads(to_json(Tilted(size=256)))["degrees"] == 10.0
