"""Specs: values that survive JSON, refuse what cannot be built, and are open to classes of one's own."""

import json

import attrs
import pytest
import torch
from torch import nn

from mobileclip import reparameterize, specs
from mobileclip.blocks import RepMixer
from mobileclip.encoders import (
    AttentionSpec,
    DualEncoderSpec,
    ImageEncoderSpec,
    MCiSpec,
    MCtSpec,
    RepMixerSpec,
    StageSpec,
    TextTransformerSpec,
    TokenMixerSpec,
    ViTSpec,
    token_mixers,
)
from mobileclip.inputs import ImageInput
from mobileclip.reparam import is_folded
from mobileclip.serialization import from_json, to_json
from tests.blocks.filling import filled
from tests.encoders.towers import SMALL, inputs
from tests.errors import fails


def edited(spec, *path, **changes):
    """The spec's JSON with some keys changed in the object at `path`."""
    value = json.loads(to_json(spec, unstructure_as=ImageEncoderSpec))
    target = value
    for key in path:
        target = target[key]
    target.update(changes)
    return json.dumps(value)


MIXER = ("stages", 1, "mixer")


@pytest.mark.parametrize(
    ("path", "changes", "named"),
    [
        ((), {"colour": "red"}, "unknown key 'colour'; known: embedding_dim, input, projection_bias, stages"),
        (("input",), {"colour": "red"}, "unknown key 'colour'; known: size, interpolation, mean, std"),
        (("stages", 1), {"colour": "red"}, "unknown key 'colour'; known: dim, depth, mixer, squeeze_excite"),
        (MIXER, {"colour": "red"}, "unknown key 'colour'; known: head_dim, norm, position_kernel_size"),
        ((), {"kind": "mcj"}, "did you mean 'mci'"),
        (MIXER, {"kind": "repmixr"}, "did you mean 'repmixer'"),
        (MIXER, {"position_kernel_size": 4}, "position_kernel_size"),
    ],
)
def test_unknown_keys_and_kinds_and_bad_values_are_refused_at_every_level(path, changes, named):
    with fails(ValueError, named):
        from_json(edited(SMALL["mci"], *path, **changes), ImageEncoderSpec)


def test_a_spec_without_a_kind_is_told_the_kinds():
    with fails(ValueError, "mci, open_clip, transformers, vit"):
        from_json("{}", ImageEncoderSpec)


def test_specs_are_values():
    bigger = attrs.evolve(specs.mobileclip_s2(), text=specs.text_mct())
    assert bigger != specs.mobileclip_s2() == specs.mobileclip_s2()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        bigger.image = specs.mci0()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DualEncoderSpec(image=specs.mci0(), text=specs.text_base_768()), "512.*768"),
        (MCiSpec(stages=(StageSpec(dim=48, depth=1, mixer=AttentionSpec()),)).build, "48.*32"),
        (lambda: MCiSpec(stages=(StageSpec(dim=64, depth=1), StageSpec(dim=96, depth=1))), "96"),
        (lambda: MCiSpec(stages=()), "stages"),
        (lambda: MCiSpec(stages=(StageSpec(dim=8, depth=1),), ffn_ratio=0.1), "8"),
        (lambda: StageSpec(dim=0, depth=1), "dim"),
        (lambda: StageSpec(dim=8, depth=0), "depth"),
        (lambda: RepMixerSpec(kernel_size=4), "kernel_size.*4"),
        (lambda: AttentionSpec(position_kernel_size=-1), "-1"),
        (lambda: AttentionSpec(norm="group"), "norm"),
        (lambda: MCtSpec(kernel_size=10), "kernel_size"),
        (lambda: MCtSpec(num_heads=7), "num_heads=7"),
        (lambda: TextTransformerSpec(width=500), "width=500"),
        (lambda: ViTSpec(num_heads=10), "num_heads=10"),
        (lambda: ViTSpec(input=ImageInput(size=225)), "patch_size=16"),
        (lambda: ViTSpec(patch_size=14), "14"),
        (lambda: ViTSpec(stem="dense"), "stem"),
        (lambda: ViTSpec(embedding_dim=0), "embedding_dim"),
    ],
)
def test_specs_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def pooling_mixer():
    """A token mixer that is not ours: pooling instead of RepMixer, under a name of its own."""

    class PoolingBlock(nn.Module):
        def __init__(self, dim, size):
            super().__init__()
            self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)
            self.mix = RepMixer(dim)

        def forward(self, x):
            return self.mix(x + self.pool(x) - x)

    @token_mixers.register("pooling")
    @attrs.frozen(kw_only=True)
    class PoolingSpec(TokenMixerSpec):
        size: int = 3

        def build_block(self, dim, *, hidden_dim, layer_scale, drop_path):
            del hidden_dim, layer_scale, drop_path
            return PoolingBlock(dim, self.size)

    yield PoolingSpec
    del token_mixers._values["pooling"]


def test_a_token_mixer_of_ones_own_end_to_end(pooling_mixer):
    spec = attrs.evolve(
        SMALL["mci"], stages=(StageSpec(dim=8, depth=2, mixer=pooling_mixer(size=5)), SMALL["mci"].stages[1])
    )
    text = to_json(spec, unstructure_as=ImageEncoderSpec)
    assert json.loads(text)["stages"][0]["mixer"] == {"kind": "pooling", "size": 5}
    again = from_json(text, ImageEncoderSpec)
    assert again == spec
    encoder, images = filled(again.build()), inputs(spec)
    assert encoder.stages[0].blocks[0].pool.kernel_size == 5
    folded = reparameterize(encoder)
    assert is_folded(folded)
    torch.testing.assert_close(folded(images), encoder(images), rtol=1e-4, atol=1e-4)
    with fails(ValueError, "token", "mixer 'pooling'"):
        token_mixers.add("pooling", RepMixerSpec)
    unknown = type("Stranger", (pooling_mixer,), {})()
    with fails(ValueError, "Stranger", "token mixer"):
        to_json(attrs.evolve(spec, stages=(StageSpec(dim=8, depth=1, mixer=unknown),)), unstructure_as=ImageEncoderSpec)
