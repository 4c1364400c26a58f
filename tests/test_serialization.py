"""Specs in JSON: what is written is read as it was, and what is wrong is named with its path."""

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
    number: float = 0.0


@attrs.frozen(kw_only=True)
class Tilted(ImageInput):
    degrees: float = 10.0


@attrs.frozen(kw_only=True)
class OwnSpec(MCiSpec):
    pass


def complain(_, __, value):
    raise ValueError("x" * value)


@attrs.frozen(kw_only=True)
class Talkative:
    size: int = attrs.field(validator=complain)


def test_a_family_says_which_member_it_holds():
    text = to_json(specs.mci0(), unstructure_as=ImageEncoderSpec)
    assert text.startswith('{"kind": "mci"')
    assert from_json(text, ImageEncoderSpec) == specs.mci0()
    with fails(ValueError, "did you mean 'mci'"):
        from_json(text.replace('"mci"', '"mcii"'), ImageEncoderSpec)


@pytest.mark.parametrize(
    ("cls", "text", "named"),
    [
        (ImageInput, '{"size": 256, "crop": 1}', ("unknown key 'crop'; known: size",)),
        (ImageInput, "{}", ("required key 'size' is missing",)),
        (ImageInput, '{"size": -1}', ("'size' must be > 0",)),
        (ImageInput, '{"size": 256, "interpolation": "nearest"}', ("nearest",)),
        (ImageInput, '{"size": 256, "mean": [0, 0]}', ("'mean' of ImageInput: has 2 values",)),
        (ImageInput, "{", ()),
        # Nothing is converted on the way.
        *(
            (ImageInput, f'{{"size": {value}}}', (word,))
            for value, word in {
                '"8"': "str",
                "8.0": "8.0",
                "true": "True",
                "null": "None",
                "9" * 100: "100",
                f"{2**65}": "66",
                "NaN": "NaN",
                "1e999": "",
                '8, "size": 9': "size",
                "[" * 100_000: "",
            }.items()
        ),
        # Every kind of field is held to its annotation.
        (Everything, '{"either": 1.5}', ("1.5", "float")),
        (Everything, '{"choice": "c"}', ("a', 'b", "c", "str")),
        (Everything, '{"part": 3}', ("int",)),
        (Everything, '{"parts": {"size": 8}}', ("dict",)),
        (Everything, '{"parts": [{"size": 8}, {"size": 0}]}', ("'size' must be > 0",)),
        (Everything, '{"pair": [1]}', ("2", "1")),
        (Everything, '{"pair": [1, 2]}', ("2", "int")),
        (Everything, '{"sizes": [1]}', ("list",)),
        (Everything, '{"sizes": {"a": "1"}}', ("1", "str")),
        (Everything, '{"inputs": {"a": 1}}', ("int",)),
        (Everything, '{"place": 3}', ("3", "int")),
        # What is wrong is named with its path, as much of it as people can read.
        (Everything, f'{{"parts": {[0] * 1000}}}', ("and 1 more",)),
        (Talkative, '{"size": 240}', (f"{'x' * 240} @ Talkative",)),
        (Talkative, '{"size": 241}', (f"{'x' * 240}... @ Talkative",)),
        (DualEncoderSpec, to_json(specs.mobileclip_s0()).replace('"depth"', '"deph"', 1), ("'deph'", "stages")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_text_is_explained(cls, text, named):
    with fails(ValueError, *named):
        from_json(text, cls)


def test_the_first_items_of_a_list_that_are_wrong_are_all_named():
    with fails(ValueError, "Everything") as caught:
        from_json('{"parts": [1, {"size": 8}, 2, {"size": 0}]}', Everything)
    assert [f"Everything.parts[{place}]" in str(caught.value) for place in range(4)] == [True, False, True, True]


@pytest.mark.parametrize(
    ("cls", "choices", "named"),
    [
        *((ImageInput, wrong, ("ImageInput",)) for wrong in ({"size": "8"}, {"size": True}, {"size": 8.0})),
        (ImageInput, {"size": 8, "std": (0.0, 1.0, 1.0)}, ()),
        *(
            (ImageInput, {"size": 8, "mean": mean}, ("'mean'", "ImageInput"))
            for mean in ([0.0, 0.0, 0.0], (0.0, 0.0), (float("inf"), 0.0, 0.0), (float("nan"), 0.0, 0.0))
        ),
        *(
            (ImageInput, {"size": 8, field: (1.0, outside, 1.0)}, (f"'{field}'",))
            for field, outsides in {"mean": (-1001.0, 1001.0), "std": (9e-7, 1001.0)}.items()
            for outside in outsides
        ),
        (TextInput, {"context_length": 2}, ("context_length",)),
        (TextInput, {"pad_id": -1}, ("pad_id", ">= 0")),
        (TextInput, {"pad_id": 49408}, ("pad_id", "49408 ids")),
    ],
)
def test_python_is_held_to_the_annotations_too(cls, choices, named):
    with fails(ValueError, *named):
        cls(**choices)
    assert (TextInput().start_id, TextInput().end_id) == (49406, 49407)
    widest = ImageInput(size=8, mean=(-1e3, 1.0, 1e3), std=(1e-6, 1.0, 1e3))
    assert (widest.mean, widest.std) == ((-1e3, 1.0, 1e3), (1e-6, 1.0, 1e3))
    assert ImageInput(size=8, mean=(0, 1, 0)) == from_json('{"size": 8, "mean": [0, 1, 0]}', ImageInput)
    assert ImageInput(size=8, mean=(0, 1, 0)).mean == (0.0, 1.0, 0.0), "a whole number will do as a float"


@pytest.mark.parametrize(
    ("spec", "family", "named"),
    [
        (Everything(number=float("inf")), None, ()),
        (attrs.evolve(specs.mci0(), input=Tilted(size=256)), ImageEncoderSpec, ("ImageInput", "Tilted")),
        (
            DualEncoderSpec(image=OwnSpec(stages=(StageSpec(dim=8, depth=1),)), text=specs.text_base()),
            *(None, ("OwnSpec", "image encoder family")),
        ),
    ],
    ids=["infinity", "a subclass of which JSON would hold the parent", "a class that is not registered"],
)
def test_what_would_not_be_read_as_it_was_is_not_written(spec, family, named):
    with fails(ValueError, *named):
        to_json(spec, unstructure_as=family)
    assert json.loads(to_json(Tilted(size=256)))["degrees"] == 10.0


@pytest.mark.parametrize(
    "changes",
    [
        {"either": "x"},
        {"choice": "b", "part": ImageInput(size=8), "parts": (ImageInput(size=8), ImageInput(size=9))},
        {"sizes": {"a": 1}, "inputs": {"b": ImageInput(size=8)}, "anything": {"c": [1, {"d": None}]}},
        {"place": Path("a/b"), "pair": (2, "b")},
    ],
)
def test_every_kind_of_field_comes_back(changes):
    spec = Everything(**changes)
    found = from_json(to_json(spec), Everything)
    assert found == spec
    for name, value in changes.items():
        assert type(getattr(found, name)) is type(value)


KEYS = ("kind", "depth", "dim", "size", "mean", "stages", "input", "width", "nonsense")
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
