"""ConvNorm, ConvFFN, LargeKernelConv, RepCPE and the downsampling made of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip import reparameterize
from mobileclip.blocks import ConvFFN, ConvNorm, Downsample, LargeKernelConv, RepCPE, SqueezeExcite
from tests.blocks.filling import filled, noise
from tests.errors import fails


def test_conv_norm_pads_by_half_its_kernel_unless_told():
    assert ConvNorm(4, kernel_size=(1, 11)).conv.padding == (0, 5)
    assert ConvNorm(4, kernel_size=(4, 4), padding=(1, 1)).conv.padding == (1, 1)


def test_conv_norm_keeps_its_geometry_when_folded():
    block = filled(ConvNorm(4, out_dim=8, kernel_size=(4, 2), stride=2, padding=(1, 0), groups=2))
    folded, x = reparameterize(block), noise(1, 4, 10, 9)
    assert (folded.stride, folded.padding, folded.groups) == ((2, 2), (1, 0), 2)
    torch.testing.assert_close(folded(x), block(x), rtol=1e-5, atol=1e-5)


def test_conv_ffn_formula():
    block, x = filled(ConvFFN(4, hidden_dim=6)), noise(1, 4, 9, 9)
    torch.testing.assert_close(block(x), block.fc2(F.gelu(block.fc1(block.conv.norm(block.conv.conv(x))))))


def test_conv_ffn_scaled_leaves_the_original_alone():
    block, x, scale = filled(ConvFFN(4)), noise(1, 4, 9, 9), noise(4, 1, 1, seed=1)
    before = block(x)
    torch.testing.assert_close(block.scaled(scale)(x), scale * before)
    assert torch.equal(block(x), before)


def test_large_kernel_formula():
    block, x = filled(LargeKernelConv(4, out_dim=8, stride=2, squeeze_excite=True)), noise(2, 4, 9, 9)
    torch.testing.assert_close(block(x), F.gelu(block.squeeze_excite(block.large(x) + block.small(x))))


def test_large_kernel_keeps_one_kernel():
    folded = reparameterize(filled(LargeKernelConv(4, kernel_size=(9, 5), small_kernel_size=(3, 5))))
    assert folded.conv.kernel_size == (9, 5)
    assert folded.conv.groups == 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"kernel_size": (6, 7)}, (ValueError, "(6, 7)")),
        ({"small_kernel_size": (2, 2)}, (ValueError, "(2, 2)")),
        ({"kernel_size": (3, 7), "small_kernel_size": (5, 5)}, (ValueError, "(5, 5)", "(3, 7)")),
        ({"out_dim": 6}, (ValueError, "6", "4")),
    ],
)
def test_large_kernel_refuses(arguments, error):
    with fails(*error):
        LargeKernelConv(4, **arguments)


def test_downsample_refuses_a_width_that_is_no_multiple():
    with fails(ValueError, "100", "64"):
        Downsample(64, out_dim=100)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (1, 2)])
def test_downsample_rounds_sides_up(height, width):
    block = filled(Downsample(4, out_dim=8))
    assert block(noise(1, 4, height, width)).shape == (1, 8, -(-height // 2), -(-width // 2))


def test_rep_cpe_formula_and_folded_form():
    block, x = filled(RepCPE(4, kernel_size=(5, 7))), noise(1, 4, 9, 9)
    torch.testing.assert_close(block(x), x + block.conv(x))
    assert type(reparameterize(block)) is nn.Conv2d


@pytest.mark.parametrize("make", [RepCPE, ConvFFN])
def test_even_kernels_are_refused(make):
    with fails(ValueError, "(7, 8)"):
        make(4, kernel_size=(7, 8))


def test_squeeze_excite_formula():
    block, x = filled(SqueezeExcite(8, reduction=4)), noise(2, 8, 3, 5)
    mean = x.mean((2, 3))
    hidden = F.relu(mean @ block.reduce.weight[:, :, 0, 0].T + block.reduce.bias)
    gate = torch.sigmoid(hidden @ block.expand.weight[:, :, 0, 0].T + block.expand.bias)
    torch.testing.assert_close(block(x), x * gate[:, :, None, None])


def test_squeeze_excite_keeps_one_channel_at_least():
    assert SqueezeExcite(8, reduction=16).reduce.out_channels == 1
