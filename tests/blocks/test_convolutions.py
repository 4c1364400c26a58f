"""ConvNorm, ConvFFN, LargeKernelConv, RepCPE and the downsampling made of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip import reparameterize
from mobileclip.blocks import ConvFFN, ConvNorm, Downsample, LargeKernelConv, RepCPE, SqueezeExcite
from tests.blocks.filling import filled, noise
from tests.errors import fails


def test_conv_norm_keeps_its_geometry_when_folded():
    assert ConvNorm(4, kernel_size=(1, 11)).conv.padding == (0, 5), "half the kernel unless told"
    block = filled(ConvNorm(4, out_dim=8, kernel_size=(4, 2), stride=2, padding=(1, 0), groups=2))
    folded, x = reparameterize(block), noise(1, 4, 10, 9)
    assert (folded.stride, folded.padding, folded.groups) == ((2, 2), (1, 0), 2)
    torch.testing.assert_close(folded(x), block(x), rtol=1e-5, atol=1e-5)


def test_conv_ffn_formula_and_a_scaled_one_that_leaves_the_original_alone():
    block, x, scale = filled(ConvFFN(4, hidden_dim=6)), noise(1, 4, 9, 9), noise(4, 1, 1, seed=1)
    before = block(x)
    torch.testing.assert_close(before, block.fc2(F.gelu(block.fc1(block.conv.norm(block.conv.conv(x))))))
    torch.testing.assert_close(block.scaled(scale)(x), scale * before)
    assert torch.equal(block(x), before)


def test_large_kernel_formula_and_the_one_kernel_that_it_folds_to():
    block, x = filled(LargeKernelConv(4, out_dim=8, stride=2, squeeze_excite=True)), noise(2, 4, 9, 9)
    torch.testing.assert_close(block(x), F.gelu(block.squeeze_excite(block.large(x) + block.small(x))))
    folded = reparameterize(filled(LargeKernelConv(4, kernel_size=(9, 5), small_kernel_size=(3, 5))))
    assert (folded.conv.kernel_size, folded.conv.groups) == ((9, 5), 4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (1, 2)])
def test_downsample_rounds_sides_up(height, width):
    block = filled(Downsample(4, out_dim=8))
    assert block(noise(1, 4, height, width)).shape == (1, 8, -(-height // 2), -(-width // 2))


def test_rep_cpe_formula_and_folded_form():
    block, x = filled(RepCPE(4, kernel_size=(5, 7))), noise(1, 4, 9, 9)
    torch.testing.assert_close(block(x), x + block.conv(x))
    assert type(reparameterize(block)) is nn.Conv2d


@pytest.mark.parametrize(
    ("make", "arguments", "named"),
    [
        (LargeKernelConv, {"kernel_size": (6, 7)}, ("(6, 7)",)),
        (LargeKernelConv, {"small_kernel_size": (2, 2)}, ("(2, 2)",)),
        (LargeKernelConv, {"kernel_size": (3, 7), "small_kernel_size": (5, 5)}, ("(5, 5)", "(3, 7)")),
        (LargeKernelConv, {"out_dim": 6}, ("6", "4")),
        (Downsample, {"out_dim": 10}, ("10", "4")),
        (RepCPE, {"kernel_size": (7, 8)}, ("(7, 8)",)),
        (ConvFFN, {"kernel_size": (7, 8)}, ("(7, 8)",)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, arguments, named):
    with fails(ValueError, *named):
        make(4, **arguments)


def test_squeeze_excite_formula():
    block, x = filled(SqueezeExcite(8, reduction=4)), noise(2, 8, 3, 5)
    mean = x.mean((2, 3))
    hidden = F.relu(mean @ block.reduce.weight[:, :, 0, 0].T + block.reduce.bias)
    gate = torch.sigmoid(hidden @ block.expand.weight[:, :, 0, 0].T + block.expand.bias)
    torch.testing.assert_close(block(x), x * gate[:, :, None, None])
    assert SqueezeExcite(8, reduction=16).reduce.out_channels == 1
