"""Attention as exports have it gives the same embeddings, in double precision; the last one is made of layers."""

import copy

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export.towers import set_attention, written_out_attention
from mobileclip.inference.forms import fused_attention, with_one_token
from tests.export.models import PIXELS, TOKENS, pixels


@pytest.fixture(scope="module")
def inputs():
    return {"image": pixels(PIXELS).double(), "text": Tokenizer(TOKENS)(["", "a cat", "two dogs on a beach"])}


@pytest.mark.parametrize("attend", [fused_attention, written_out_attention])
@pytest.mark.parametrize("tower", ["image", "text"])
@torch.inference_mode()
def test_nothing_changes_but_the_layers(transformers, inputs, tower, attend):
    encoder = getattr(reparameterize(copy.deepcopy(transformers)).double(), f"{tower}_encoder")
    expected = encoder(inputs[tower])
    split = with_one_token(copy.deepcopy(encoder))
    set_attention(split, attend)
    torch.testing.assert_close(split(inputs[tower]), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder(inputs[tower]), expected, rtol=0, atol=0)
    width = encoder.spec.width
    attention = split.layers[-1].attention
    assert [tuple(part.weight.shape) for part in (attention.query, attention.key_value)] == [
        (width, width),
        (2 * width, width),
    ]
    assert attention.key_value.weight.data_ptr() != attention.query.weight.data_ptr()
    assert with_one_token(split) is split
    whole = split.layers[0].attention
    assert type(whole.qkv) is nn.Linear


@torch.inference_mode()
def test_one_query_is_computed(transformers, inputs):
    seen = {}
    split = with_one_token(reparameterize(transformers).text_encoder)
    for name in ("query", "key_value"):
        layer = getattr(split.layers[-1].attention, name)
        layer.register_forward_pre_hook(lambda _, taken, name=name: seen.update({name: tuple(taken[0].shape[:-1])}))
    split(inputs["text"])
    assert seen == {"query": (3,), "key_value": (3, TOKENS.context_length)}
