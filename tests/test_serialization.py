import attrs
import pytest

from mobileclip import specs
from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec, MCiSpec, StageSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.serialization import from_json, to_json


def test_specs_come_back_equal():
    spec = specs.mobileclip_s0()
    assert from_json(to_json(spec), DualEncoderSpec) == spec
    assert hash(from_json(to_json(spec, indent=2), DualEncoderSpec)) == hash(spec)


def test_a_family_says_which_member_it_holds():
    text = to_json(specs.mci0(), unstructure_as=ImageEncoderSpec)
    assert text.startswith('{"kind": "mci"')
    assert from_json(text, ImageEncoderSpec) == specs.mci0()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"size": 256, "crop": 1}', "unknown key 'crop'; known: size"),
        ("{}", "required key 'size' is missing"),
        ('{"size": -1}', "'size' must be > 0"),
        ('{"size": 256, "interpolation": "nearest"}', "nearest"),
        ('{"size": 256, "mean": [0, 0]}', "mean"),
        ("{", "not JSON"),
    ],
)
def test_bad_text_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text, ImageInput)


def test_an_unknown_key_deep_inside_is_named_with_its_path():
    text = to_json(specs.mobileclip_s0()).replace('"depth": 2', '"deph": 2', 1)
    with pytest.raises(ValueError, match=r"unknown key 'deph'.*stages"):
        from_json(text, DualEncoderSpec)


def test_an_unknown_member_suggests_the_nearest():
    text = to_json(specs.mci0(), unstructure_as=ImageEncoderSpec).replace('"mci"', '"mcii"')
    with pytest.raises(ValueError, match="did you mean 'mci'"):
        from_json(text, ImageEncoderSpec)


def test_a_class_that_is_not_registered_is_not_written():
    @attrs.frozen(kw_only=True)
    class OwnSpec(MCiSpec):
        pass

    own = DualEncoderSpec(image=OwnSpec(stages=(StageSpec(dim=8, depth=1),)), text=specs.text_base())
    with pytest.raises(ValueError, match="OwnSpec is not a registered image encoder family"):
        to_json(own)


def test_inputs_refuse_nonsense():
    for bad in ({"size": 0}, {"size": 8, "interpolation": "nearest"}, {"size": 8, "std": (0.0, 1.0, 1.0)}):
        with pytest.raises(ValueError, match="must be"):
            ImageInput(**bad)
    with pytest.raises(ValueError, match="context_length"):
        TextInput(context_length=2)
    assert (TextInput().start_id, TextInput().end_id) == (49406, 49407)
