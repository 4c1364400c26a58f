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


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ChannelLayerNorm])
def test_a_batch_norm_goes_into_the_first_projection_which_so_gets_a_bias_and_scales_go(norm):
    block = filled(AttentionBlock(8, head_dim=4, norm=norm))
    folded = reparameterize(block)
    assert block.attention.qkv.bias is None
    assert (folded.attention.qkv.bias is None) == (norm is ChannelLayerNorm)
    assert isinstance(folded.norm, ChannelLayerNorm if norm is ChannelLayerNorm else nn.Identity)
    assert isinstance(folded.attention_scale, nn.Identity)
    assert isinstance(folded.ffn_scale, nn.Identity)


def test_new_blocks_are_almost_the_identity_and_fold_no_further_than_once():
    x = noise(2, 8, 8, 8)
    for block, width in ((RepMixerBlock(8).eval(), 32), (AttentionBlock(8, head_dim=4, hidden_dim=12).eval(), 12)):
        assert block.ffn.fc1.out_channels == width, "four times as wide unless told"
        assert (block(x) - x).abs().max() < 1e-3
        folded = reparameterize(block)
        assert not folded.foldable
        assert folded.fold().state_dict().keys() == folded.state_dict().keys()
    with fails(ValueError, "48", "32"):
        AttentionBlock(48)


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
