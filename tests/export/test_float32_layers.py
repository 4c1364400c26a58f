"""Which layers stay in float32, and that they do."""

import copy

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export import bundled_samples
from mobileclip.export.int8 import layers_in_float32, weighted_layers
from mobileclip.export.towers import keep_in_float32
from mobileclip.inference.forms import with_one_token
from tests.export.models import CONVOLUTIONAL, PIXELS, TOKENS, TRANSFORMERS, overflowing, pixels, seeing


@pytest.fixture(scope="module")
def image_encoder():
    return reparameterize(seeing(CONVOLUTIONAL)).image_encoder


@pytest.fixture(scope="module")
def images():
    return pixels(PIXELS)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_no_layer_stays_in_float32_without_need(image_encoder, images, precision):
    assert layers_in_float32(image_encoder, images, precision) == frozenset()


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_grouped_convolutions_stay_in_float32_in_eight_bits(image_encoder, images, precision):
    grouped = {name for name, layer in weighted_layers(image_encoder) if getattr(layer, "groups", 1) > 1}
    assert "stages.0.blocks.0.token_mixer" in grouped
    assert layers_in_float32(image_encoder, images, precision) == grouped
    text_encoder, tokens = reparameterize(seeing(TRANSFORMERS)).text_encoder, Tokenizer(TOKENS)(["a cat"])
    assert not layers_in_float32(text_encoder, tokens, precision), "a transformer has no grouped convolutions"


@torch.no_grad()
def test_float16_keeps_the_layers_that_leave_its_range():
    encoder = reparameterize(overflowing(TRANSFORMERS)).text_encoder
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    wide = layers_in_float32(encoder, tokens, "float16")
    assert wide == {"norm", "project"}
    expected = encoder(tokens)
    half = reparameterize(overflowing(TRANSFORMERS)).text_encoder.half()
    assert not bool(half(tokens).isfinite().all())
    keep_in_float32(half, wide)
    assert half.project.weight.dtype == half.norm.weight.dtype == torch.float32
    assert half.layers[0].ffn.fc1.weight.dtype == torch.float16
    cosines = torch.nn.functional.cosine_similarity(half(tokens).double(), expected.double())
    assert float(cosines.min()) > 0.9995


@torch.no_grad()
def test_float16_keeps_the_layers_that_other_inputs_may_take_out_of_its_range():
    encoder = reparameterize(seeing(TRANSFORMERS)).text_encoder
    encoder.norm.weight.mul_(1e4)
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    assert bool(copy.deepcopy(encoder).half()(tokens).isfinite().all())
    assert layers_in_float32(encoder, tokens, "float16") == {"norm", "project"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["query", "key_value"])
def test_one_half_of_an_attention_may_be_kept(name):
    encoder = with_one_token(reparameterize(seeing(TRANSFORMERS)).text_encoder)
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    expected, half = encoder(tokens), copy.deepcopy(encoder).half()
    keep_in_float32(half, frozenset([f"layers.1.attention.{name}"]))
    assert float(torch.nn.functional.cosine_similarity(half(tokens).double(), expected.double()).min()) > 0.9995
