"""Which layers stay in float32, and that they do."""

import copy

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export import bundled_samples
from mobileclip.export.towers import ROUNDING, fallbacks, keep_in_float32, most_affected
from mobileclip.inference import weighted_layers
from mobileclip.inference.forms import with_one_token
from tests.export.models import CONVOLUTIONAL, PIXELS, TOKENS, TRANSFORMERS, overflowing, pixels, seeing


@pytest.fixture(scope="module")
def image_encoder():
    return reparameterize(seeing(CONVOLUTIONAL)).image_encoder


@pytest.fixture(scope="module")
def images():
    return pixels(PIXELS)


def test_float32_needs_nothing(image_encoder, images):
    (only,) = fallbacks(image_encoder, images, "float32")
    assert (only.name, only.layers) == ("", frozenset())


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_of_16_bits_those_stay_float32_that_lose_most(image_encoder, images, precision):
    nothing, eighth, quarter = fallbacks(image_encoder, images, precision)
    assert (nothing.name, nothing.layers) == ("", frozenset())
    assert eighth.name == "an eighth of the layers: those that lose most"
    affected = most_affected(image_encoder, images[:4], precision)
    assert eighth.layers == set(affected[: len(eighth.layers)])
    assert eighth.layers < quarter.layers == set(affected[: len(quarter.layers)])
    assert most_affected(image_encoder, images[:4], "int8") != affected


def test_int8_keeps_grouped_convolutions_then_those_that_lose_most(image_encoder, images):
    nothing, grouped, eighth, quarter = (fallback.layers for fallback in fallbacks(image_encoder, images, "int8"))
    modules = dict(weighted_layers(image_encoder))
    assert not nothing
    assert grouped == {name for name, module in modules.items() if getattr(module, "groups", 1) > 1}
    assert "stages.0.blocks.0.token_mixer" in grouped
    assert grouped < eighth < quarter < modules.keys()
    affected = most_affected(image_encoder, images[:4], "int8", excluded=set(grouped))
    assert eighth - grouped == set(affected[: len(eighth - grouped)])
    assert quarter - grouped == set(affected[: len(quarter - grouped)])
    for layers, share in ((eighth, 1 / 8), (quarter, 1 / 4)):
        assert share <= len(layers - grouped) / len(affected) < share + 1 / len(affected)
    text_encoder = reparameterize(seeing(TRANSFORMERS)).text_encoder
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    names = [fallback.name for fallback in fallbacks(text_encoder, tokens, "int8")]
    assert len(names) == len(set(names)) == 3, "a transformer has no grouped convolutions"


@torch.no_grad()
def test_layers_that_lose_most_come_first_and_the_model_stays_as_it_was(images, capsys):
    """Values in front of one layer are large where its weights are zero: rounded with those, the others vanish."""
    encoder = reparameterize(seeing(CONVOLUTIONAL)).image_encoder
    first, second = encoder.stages[1].blocks[0].ffn.fc1, encoder.stages[1].blocks[0].ffn.fc2
    first.weight[0] = 0
    first.bias[0] = 1e4
    second.weight[:, 0] = 0
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    expected = encoder(images)
    order = most_affected(encoder, images, "int8", excluded={"stem.0.conv"})
    assert order[0] == "stages.1.blocks.0.ffn.fc2"
    assert set(order) == {name for name, _ in weighted_layers(encoder)} - {"stem.0.conv"}
    assert len(order) == len(set(order))
    assert capsys.readouterr().err == ""
    assert most_affected(encoder, images, "int8", excluded={"stem.0.conv"}, show_progress=True) == order
    assert f"rounding one layer at a time: {len(order)}/{len(order)}" in capsys.readouterr().err
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in encoder.modules())
    assert not any("forward" in vars(module) for module in encoder.modules())
    torch.testing.assert_close(encoder(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
@torch.no_grad()
def test_each_layer_is_rounded_alone(image_encoder, images, precision):
    """The order is that of whole passes with one layer of them rounded."""
    rounded_weight, rounded_input = ROUNDING[precision]
    expected, turns = image_encoder(images), {}
    for name, _ in weighted_layers(image_encoder):
        rounded = copy.deepcopy(image_encoder)
        layer = rounded.get_submodule(name)
        layer.weight.copy_(rounded_weight(layer.weight))
        layer.register_forward_pre_hook(lambda _, taken: tuple(rounded_input(tensor) for tensor in taken))
        turns[name] = float(torch.nn.functional.cosine_similarity(rounded(images), expected).min())
    found = most_affected(image_encoder, images, precision)
    assert [turns[name] for name in found] == sorted(turns.values())


@torch.no_grad()
def test_float16_keeps_the_layers_that_leave_its_range():
    encoder = reparameterize(overflowing(TRANSFORMERS)).text_encoder
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    wide, eighth, quarter = (fallback.layers for fallback in fallbacks(encoder, tokens, "float16"))
    assert wide == {"norm", "project"}
    assert wide < eighth < quarter
    expected = encoder(tokens)
    half = reparameterize(overflowing(TRANSFORMERS)).text_encoder.half()
    assert not bool(half(tokens).isfinite().all())
    keep_in_float32(half, wide)
    assert half.project.weight.dtype == half.norm.weight.dtype == torch.float32
    assert half.layers[0].ffn.fc1.weight.dtype == torch.float16
    cosines = torch.nn.functional.cosine_similarity(half(tokens).double(), expected.double())
    assert float(cosines.min()) > 0.9995


@torch.no_grad()
def test_layers_near_the_end_of_float16_are_kept_where_the_others_do_not_help():
    encoder = reparameterize(seeing(TRANSFORMERS)).text_encoder
    encoder.norm.weight.mul_(1e4)
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    nothing, near, *_ = (fallback.layers for fallback in fallbacks(encoder, tokens, "float16"))
    assert not nothing
    assert near == {"norm", "project"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["query", "key_value"])
def test_one_half_of_an_attention_may_be_kept(name):
    encoder = with_one_token(reparameterize(seeing(TRANSFORMERS)).text_encoder)
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    expected, half = encoder(tokens), copy.deepcopy(encoder).half()
    keep_in_float32(half, frozenset([f"layers.1.attention.{name}"]))
    assert float(torch.nn.functional.cosine_similarity(half(tokens).double(), expected.double()).min()) > 0.9995


def test_keeping_nothing_changes_nothing(images):
    encoder = reparameterize(seeing(CONVOLUTIONAL)).image_encoder.half()
    keep_in_float32(encoder, frozenset())
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float16}
    assert not any(module._forward_pre_hooks for module in encoder.modules())
    assert encoder(images.half()).dtype == torch.float16
