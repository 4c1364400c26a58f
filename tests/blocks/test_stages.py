"""The metaformer blocks: where scales and norms stand, and where they go."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import (
    Attention,
    AttentionBlock,
    ChannelLayerNorm,
    RepMixer,
    RepMixerBlock,
    TextRepMixerBlock,
    TransformerLayer,
)
from tests.blocks.filling import filled, noise
from tests.errors import fails


def test_repmixer_block_formula():
    block, x = filled(RepMixerBlock(4)), noise(2, 4, 8, 8)
    mixed = block.token_mixer(x)
    torch.testing.assert_close(block(x), mixed + block.layer_scale.gamma * block.ffn(mixed))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ChannelLayerNorm])
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
    folded = reparameterize(filled(AttentionBlock(8, head_dim=4, norm=ChannelLayerNorm)))
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
    with fails(ValueError, "48", "32"):
        AttentionBlock(48)


def test_fold_returns_itself_where_nothing_is_left():
    for block in (RepMixerBlock(8), AttentionBlock(8, head_dim=4)):
        folded = reparameterize(block.eval())
        assert not folded.foldable
        assert folded.fold().state_dict().keys() == folded.state_dict().keys()


def test_scales_may_be_negative_or_zero():
    block, x = filled(AttentionBlock(8, head_dim=4)).double(), noise(2, 8, 4, 4, dtype=torch.float64)
    block.attention_scale.gamma.data[:4] *= -1
    block.ffn_scale.gamma.data[2:6] = 0
    torch.testing.assert_close(reparameterize(block)(x), block(x), rtol=1e-10, atol=1e-10)


class Shifted(nn.Module):
    """A mixer of one's own: the neighbour on the left."""

    def forward(self, x):
        return x.roll(1, dims=-1)


@pytest.mark.parametrize("make", [RepMixerBlock, TextRepMixerBlock, AttentionBlock, TransformerLayer])
def test_a_mixer_of_ones_own_is_an_argument(make):
    """An empty one too, which is false where it is asked for its truth."""
    shape = (2, 5, 8) if make in {TextRepMixerBlock, TransformerLayer} else (2, 8, 4, 5)
    for mixer in (Shifted(), nn.Sequential()):
        block, x = filled(make(8, mixer=mixer)).double(), noise(*shape, dtype=torch.float64)
        assert mixer in list(block.modules())
        assert not any(isinstance(part, (Attention, RepMixer)) for part in block.modules())
        torch.testing.assert_close(reparameterize(block)(x), block(x), rtol=1e-10, atol=1e-10)
