"""The metaformer blocks: where scales and norms stand, and where they go."""

import pytest
import torch
from torch import nn

from mobileclip.blocks import AttentionBlock, ChannelLayerNorm, RepMixerBlock
from mobileclip.reparam import reparameterize
from tests.blocks.filling import filled, noise


def test_repmixer_block_formula():
    block, x = filled(RepMixerBlock(4)), noise(2, 4, 8, 8)
    mixed = block.token_mixer(x)
    torch.testing.assert_close(block(x), mixed + block.layer_scale.gamma * block.ffn(mixed))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_attention_block_formula(norm):
    block, x = filled(AttentionBlock(8, head_dim=4, norm=norm)), noise(2, 8, 4, 4)
    mixed = x + block.attention_scale.gamma * block.attention(block.norm(x))
    torch.testing.assert_close(block(x), mixed + block.ffn_scale.gamma * block.ffn(mixed))


def test_the_batch_norm_goes_into_the_first_projection_which_so_gets_a_bias():
    block = filled(AttentionBlock(8, head_dim=4))
    folded = reparameterize(block)
    assert block.attention.qkv.bias is None
    assert folded.attention.qkv.bias.any()
    assert isinstance(folded.norm, nn.Identity)


def test_the_layer_norm_stays_and_the_scales_go():
    folded = reparameterize(filled(AttentionBlock(8, head_dim=4, norm="layer")))
    assert isinstance(folded.norm, ChannelLayerNorm)
    assert folded.attention.qkv.bias is None
    assert isinstance(folded.attention_scale, nn.Identity)
    assert isinstance(folded.ffn_scale, nn.Identity)


def test_new_blocks_are_almost_the_identity():
    x = noise(2, 8, 8, 8)
    for block in (RepMixerBlock(8).eval(), AttentionBlock(8, head_dim=4).eval()):
        assert (block(x) - x).abs().max() < 1e-3


def test_the_feed_forward_network_is_four_times_as_wide_unless_told():
    assert RepMixerBlock(8).ffn.fc1.out_channels == 32
    assert AttentionBlock(8, head_dim=4, hidden_dim=12).ffn.fc1.out_channels == 12


def test_heads_divide_the_channels():
    with pytest.raises(ValueError, match="dim=48 is not a multiple of head_dim=32"):
        AttentionBlock(48)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'batch' or 'layer', not 'group'"):
        AttentionBlock(32, norm="group")


def test_fold_returns_itself_where_nothing_is_left():
    for block in (RepMixerBlock(8), AttentionBlock(8, head_dim=4)):
        folded = reparameterize(block.eval())
        assert not folded.foldable
        assert folded.fold() is folded


def test_scales_may_be_negative_or_zero():
    block, x = filled(AttentionBlock(8, head_dim=4)).double(), noise(2, 8, 4, 4, dtype=torch.float64)
    block.attention_scale.gamma.data[:4] *= -1
    block.ffn_scale.gamma.data[2:6] = 0
    torch.testing.assert_close(reparameterize(block)(x), block(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "make", [lambda: RepMixerBlock(6, hidden_dim=9), lambda: AttentionBlock(6, head_dim=3, hidden_dim=9)]
)
def test_in_training_the_layer_scale_may_go_into_the_weights(make):
    """The same values and gradients as after the network, whose output is then never held."""
    block = filled(make()).double().train()
    scale = block.layer_scale if isinstance(block, RepMixerBlock) else block.ffn_scale
    results = []
    for network in (lambda x: block.ffn.times(scale, x), lambda x: scale(block.ffn(x))):
        x = noise(2, 6, 5, 4, dtype=torch.float64).requires_grad_()
        block.zero_grad()
        y = network(x)
        y.pow(3).sum().backward()
        gradients = [p.grad for p in (*block.ffn.parameters(), *scale.parameters())]
        results.append([y.detach(), x.grad, *gradients])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_small_layer_scale_is_not_lost(dtype):
    block = RepMixerBlock(6, hidden_dim=9, layer_scale=1e-7).train()
    x = noise(2, 6, 5, 4)
    expected = block.layer_scale(block.ffn(x))
    with torch.autocast("cpu", dtype=dtype):
        y = block.ffn.times(block.layer_scale, x)
    assert (y - expected).norm() < 0.03 * expected.norm()
    copy = block.to(dtype)
    y = copy.ffn.times(copy.layer_scale, x.to(dtype))
    assert y.dtype == dtype
