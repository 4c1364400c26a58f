"""How far the weights of new towers are spread, tensor by tensor."""

import math

import attrs
import pytest
import torch
from torch import nn

from mobileclip.blocks import TransformerLayer
from mobileclip.encoders import AttentionSpec, ClassifierSpec, MCiSpec, MCtSpec, StageSpec, TextTransformerSpec, ViTSpec
from mobileclip.inputs import ImageInput, TextInput
from recipes.train_vit_b16_12m import ROWS

WIDTH = 96


def assert_drawn(parameter, deviation):
    """Mean and deviation lie within five standard errors of a normal distribution's."""
    values = parameter.detach().double().flatten()
    assert values.mean().item() == pytest.approx(0, abs=5 * deviation / math.sqrt(len(values)))
    assert values.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * len(values)))


@pytest.mark.parametrize(
    ("spec", "num_layers"),
    [(TextTransformerSpec(width=WIDTH, depth=3), 3), (MCtSpec(width=WIDTH, depth=2), 4)],
    ids=["transformer", "mct"],
)
def test_text_towers_start_as_clip_does(spec, num_layers):
    """Radford et al.'s reference code; what adds to the residual stream is scaled by the number of all layers."""
    torch.manual_seed(0)
    tower = type(spec)(
        width=WIDTH, depth=spec.depth, embedding_dim=80, input=TextInput(context_length=64, vocab_size=300)
    ).build()
    deviations = {
        "attention.qkv.weight": WIDTH**-0.5,
        "attention.project.weight": (2 * num_layers * WIDTH) ** -0.5,
        "ffn.fc1.weight": (2 * WIDTH) ** -0.5,
        "ffn.fc2.weight": (2 * num_layers * WIDTH) ** -0.5,
    }
    layers = [layer for layer in tower.layers if isinstance(layer, TransformerLayer)]
    assert len(layers) == spec.depth
    for layer in layers:
        for name, deviation in deviations.items():
            assert_drawn(layer.get_parameter(name), deviation)
        assert not layer.attention.qkv.bias.any()
        assert not layer.attention.project.bias.any()
    assert_drawn(tower.token_embedding.weight, 0.02)
    assert_drawn(tower.position, 0.01)
    assert_drawn(tower.project.weight, WIDTH**-0.5)


VIT = ViTSpec(width=WIDTH, depth=1, num_heads=4, embedding_dim=80, input=ImageInput(size=64))
STAGES = (StageSpec(dim=16, depth=1), StageSpec(dim=WIDTH, depth=1, mixer=AttentionSpec(head_dim=16, norm="layer")))
MCI = MCiSpec(stages=STAGES, embedding_dim=80, projection_bias=True, input=ImageInput(size=64))


@pytest.mark.parametrize(
    "spec", [VIT, MCI, ClassifierSpec(image=VIT.without_projection(), num_classes=50)], ids=["vit", "mci", "classifier"]
)
def test_image_towers_draw_their_linear_layers_alike(spec):
    torch.manual_seed(0)
    tower = spec.build()
    layers = [module for module in tower.modules() if isinstance(module, nn.Linear)]
    assert len(layers) > 1
    for layer in layers:
        assert_drawn(layer.weight, 0.02)
        assert layer.bias is None or not layer.bias.any()
    norms = [module for module in tower.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert all(norm.weight.eq(1).all() for norm in norms)


def test_vision_transformers_start_with_positions_and_next_to_no_class_token():
    torch.manual_seed(0)
    tower = ViTSpec(width=WIDTH, depth=1, num_heads=4, embedding_dim=8, input=ImageInput(size=160)).build()
    assert_drawn(tower.position, 0.02)
    assert_drawn(tower.class_token, 1e-6)


def test_plain_vision_transformers_start_as_open_clips_do():
    """The deviations are those of the formulas, and those of open_clip's own tower."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    size = {"width": WIDTH, "patch_size": 16}
    spec = ViTSpec(
        **size, depth=3, num_heads=4, embedding_dim=80, stem="patch", class_position=True, norm_before=True,
        initialization="open_clip", input=ImageInput(size=160),
    )  # fmt: skip
    ours, theirs = spec.build(), VisionTransformer(
        **size, image_size=160, layers=3, heads=4, mlp_ratio=4.0, output_dim=80
    )  # fmt: skip
    fan_in = 3 * 16 * 16
    pairs = [
        (ours.class_token, theirs.class_embedding, WIDTH**-0.5),
        (ours.position, theirs.positional_embedding, WIDTH**-0.5),
        (ours.project.weight, theirs.proj, WIDTH**-0.5),
        (ours.stem.conv.weight, theirs.conv1.weight, (3 * fan_in) ** -0.5),
    ]
    for layer, block in zip(ours.layers, theirs.transformer.resblocks, strict=True):
        linear = (3 * WIDTH) ** -0.5
        pairs += [
            (layer.attention.qkv.weight, block.attn.in_proj_weight, (2 / (4 * WIDTH)) ** 0.5),
            (layer.attention.project.weight, block.attn.out_proj.weight, linear),
            (layer.ffn.fc1.weight, block.mlp.c_fc.weight, linear),
            (layer.ffn.fc1.bias, block.mlp.c_fc.bias, linear),
            (layer.ffn.fc2.weight, block.mlp.c_proj.weight, (3 * 4 * WIDTH) ** -0.5),
            (layer.ffn.fc2.bias, block.mlp.c_proj.bias, (3 * 4 * WIDTH) ** -0.5),
        ]
        for bias in (layer.attention.qkv.bias, layer.attention.project.bias, block.attn.in_proj_bias):
            assert not bias.any()
    for one, other, deviation in pairs:
        assert one.numel() == other.numel()
        assert_drawn(one, deviation)
        assert_drawn(other, deviation)
    assert torch.equal(ours.norm.weight, theirs.ln_post.weight)


def test_the_plain_vit_b16_has_the_deviations_that_were_measured_on_the_release():
    torch.manual_seed(0)
    image = ROWS["ensemble"].model.image
    assert image.initialization == "open_clip"
    tower = attrs.evolve(image, depth=1).build()
    assert tower.layers[0].ffn.fc2.weight.std().item() == pytest.approx(0.0104, abs=5e-5)
    assert tower.class_token.std().item() == pytest.approx(0.036, abs=4e-3)
