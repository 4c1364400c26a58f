"""One token of each sequence, and layers that compute one token alone."""

import pytest
import torch
from torch import nn

from mobileclip.blocks import Attention, TextRepMixerBlock, TransformerLayer
from mobileclip.blocks.picking import pick
from tests.blocks.filling import filled, noise

INDEX = torch.tensor([0, 6, 3])
LAYERS = [
    Attention(8, num_heads=2),
    Attention(8, num_heads=2, causal=True, qkv_bias=False),
    TransformerLayer(8, num_heads=2),
    TransformerLayer(8, num_heads=2, causal=True),
    TextRepMixerBlock(8, kernel_size=5),
]


def test_pick():
    x = noise(3, 7, 8)
    assert pick(x, INDEX).tolist() == [x[0, 0].tolist(), x[1, 6].tolist(), x[2, 3].tolist()]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_one_token_is_that_of_the_whole(layer):
    layer, x = filled(layer).double(), noise(3, 7, 8).double().requires_grad_()
    whole, alone = layer(x), layer.at(x, INDEX)
    expected = torch.stack([whole[row, token] for row, token in enumerate(INDEX.tolist())])
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (alone, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)
    assert gradients[0].abs().max() > 1e-3


class Adapted(nn.Module):
    """A linear layer with something learned beside it, that shows its own weight as an adapter does."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.beside = linear, filled(nn.Linear(linear.in_features, linear.out_features))
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return self.linear(x) + self.beside(x)


@torch.inference_mode()
def test_what_stands_for_the_projection_is_computed_as_it_is():
    attention, x = filled(Attention(8, num_heads=2)), noise(3, 7, 8)
    without = attention.at(x, INDEX)
    attention.qkv = Adapted(attention.qkv)
    torch.testing.assert_close(attention.at(x, INDEX), pick(attention(x), INDEX))
    assert (attention.at(x, INDEX) - without).abs().max() > 1e-2
