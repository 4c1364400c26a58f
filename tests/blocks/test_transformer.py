"""The pre-norm transformer layer, and layer norm over channels."""

from functools import partial

import pytest
import torch
from torch import nn

from mobileclip.blocks import ChannelLayerNorm, FeedForward, TransformerLayer
from tests.blocks.filling import filled, noise
from tests.errors import fails


@pytest.mark.parametrize("causal", [False, True])
def test_transformer_layer_equals_pytorchs(causal):
    layer, x = filled(TransformerLayer(8, num_heads=2, causal=causal)), noise(2, 5, 8)
    theirs = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    names = {
        "attention.qkv.": "self_attn.in_proj_",
        "attention.project.": "self_attn.out_proj.",
        "attention_norm.": "norm1.",
        "ffn_norm.": "norm2.",
        "ffn.fc1.": "linear1.",
        "ffn.fc2.": "linear2.",
    }
    state = {}
    for name, tensor in layer.state_dict().items():
        ours = next(ours for ours in names if name.startswith(ours))
        state[name.replace(ours, names[ours])] = tensor
    theirs.load_state_dict(state)
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    torch.testing.assert_close(layer(x), theirs(x, src_mask=mask), rtol=1e-5, atol=1e-6)


def test_both_norms_and_the_activation_are_made_by_what_is_given():
    layer = TransformerLayer(8, num_heads=2, norm=partial(nn.LayerNorm, eps=1e-3), activation=nn.SiLU)
    assert layer.attention_norm.eps == layer.ffn_norm.eps == 1e-3
    assert layer.attention_norm is not layer.ffn_norm
    assert isinstance(layer.ffn.activation, nn.SiLU)
    assert FeedForward(8, hidden_dim=5).fc1.out_features == 5
    with fails(ValueError, "8", "3"):
        TransformerLayer(8, num_heads=3)


def test_channel_layer_norm_normalises_every_position():
    norm, x = filled(ChannelLayerNorm(8, eps=1e-3)).double(), noise(2, 8, 3, 4, dtype=torch.float64)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    weight, bias = (tensor[:, None, None] for tensor in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x), (x - mean) / (variance + 1e-3).sqrt() * weight + bias)
