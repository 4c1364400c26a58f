"""Kernel algebra against what it stands for: running the layers one after the other."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from mobileclip.reparam import (
    conv_with,
    fuse_conv_bn,
    identity_kernel,
    norm_affine,
    pad_kernel,
    plain_conv,
    scale_output,
    shift_input,
    widened,
)
from tests.blocks.filling import filled, noise
from tests.errors import fails

DOUBLE = {"rtol": 1e-12, "atol": 1e-12}


def norm_of(dim, *, affine=True):
    return filled(nn.BatchNorm2d(dim, affine=affine)).double()


@pytest.mark.parametrize("affine", [True, False])
def test_norm_affine_is_the_norm(affine):
    norm, x = norm_of(6, affine=affine), noise(2, 6, 3, 3, dtype=torch.float64)
    scale, shift = norm_affine(norm)
    torch.testing.assert_close(scale[:, None, None] * x + shift[:, None, None], norm(x), **DOUBLE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "groups"),
    [((3, 3), 1, 1), ((1, 5), 1, 6), ((5, 3), 2, 2), ((1, 1), 2, 1), ((2, 4), 2, 3)],
)
def test_fuse_conv_bn_is_the_conv_and_the_norm(kernel_size, stride, groups, affine, bias):
    conv = filled(nn.Conv2d(6, 12, kernel_size, stride=stride, groups=groups, bias=bias)).double()
    norm, x = norm_of(12, affine=affine), noise(2, 6, 9, 11, dtype=torch.float64)
    kernel, shift = fuse_conv_bn(conv, norm)
    torch.testing.assert_close(F.conv2d(x, kernel, shift, stride=stride, groups=groups), norm(conv(x)), **DOUBLE)


def test_fuse_conv_bn_in_half_precision_rounds_nothing():
    conv, norm = filled(nn.Conv2d(3, 4, 3)).bfloat16(), filled(nn.BatchNorm2d(4)).bfloat16()
    kernel, bias = fuse_conv_bn(conv, norm)
    wide_kernel, wide_bias = fuse_conv_bn(conv.double(), norm.double())
    assert kernel.dtype == bias.dtype == torch.float64
    assert torch.equal(kernel, wide_kernel)
    assert torch.equal(bias, wide_bias)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (1, 11), (5, 3)])
def test_identity_kernel_changes_nothing(kernel_size, groups):
    x = noise(2, 8, 6, 13, dtype=torch.float64)
    kernel = identity_kernel(8, kernel_size, groups=groups, like=x)
    padding = (kernel_size[0] // 2, kernel_size[1] // 2)
    assert kernel.shape == (8, 8 // groups, *kernel_size)
    assert torch.equal(F.conv2d(x, kernel, padding=padding, groups=groups), x)


@pytest.mark.parametrize("kernel_size", [(2, 3), (3, 2), (1, 4)])
def test_identity_kernel_needs_a_centre(kernel_size):
    with fails(ValueError, str(kernel_size[0]), str(kernel_size[1])):
        identity_kernel(4, kernel_size, groups=1, like=torch.zeros(1))


side = st.integers(0, 3).map(lambda half: 2 * half + 1)


@settings(max_examples=30, deadline=None)
@given(own=st.tuples(side, side), extra=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_pad_kernel_convolves_alike(own, extra):
    target = (own[0] + 2 * extra[0], own[1] + 2 * extra[1])
    kernel, x = noise(2, 2, *own, dtype=torch.float64), noise(1, 2, 8, 7, seed=1, dtype=torch.float64)
    padded = pad_kernel(kernel, target)
    assert padded.shape[2:] == target
    torch.testing.assert_close(
        F.conv2d(x, padded, padding=(target[0] // 2, target[1] // 2)),
        F.conv2d(x, kernel, padding=(own[0] // 2, own[1] // 2)),
        **DOUBLE,
    )


@pytest.mark.parametrize(("own", "target"), [((3, 3), (1, 1)), ((3, 3), (5, 4)), ((1, 3), (3, 1)), ((2, 2), (3, 3))])
def test_pad_kernel_refuses_what_has_no_common_centre(own, target):
    with fails(ValueError, f"{own[0]}x{own[1]}", str(target[0]), str(target[1])):
        pad_kernel(torch.zeros(1, 1, *own), target)


@pytest.mark.parametrize("shape", [(12,), (12, 1, 1)])
def test_scale_output_of_a_convolution(shape):
    conv = filled(nn.Conv2d(6, 12, (3, 5), stride=2, padding=(1, 2), groups=3)).double()
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    scale, x = noise(12, seed=1, dtype=torch.float64), noise(2, 6, 8, 9, dtype=torch.float64)
    scaled = scale_output(conv, scale.reshape(shape))
    torch.testing.assert_close(scaled(x), scale[:, None, None] * conv(x), **DOUBLE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_scale_output_of_a_linear_layer(bias):
    linear = filled(nn.Linear(5, 7, bias=bias)).double()
    scale, x = noise(7, seed=1, dtype=torch.float64), noise(3, 5, dtype=torch.float64)
    scaled = scale_output(linear, scale)
    torch.testing.assert_close(scaled(x), scale * linear(x), **DOUBLE)
    assert (scaled.bias is not None) == bias


@pytest.mark.parametrize("bias", [True, False])
def test_shift_input(bias):
    linear = filled(nn.Linear(5, 7, bias=bias)).double()
    scale, shift, x = (noise(*shape, seed=seed, dtype=torch.float64) for seed, shape in enumerate([(5,), (5,), (3, 5)]))
    shifted = shift_input(linear, scale, shift)
    torch.testing.assert_close(shifted(x), linear(scale * x + shift), **DOUBLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_layers_keep_the_dtype_they_are_made_of(dtype):
    conv, linear = nn.Conv2d(2, 2, 3).to(dtype), nn.Linear(2, 2).to(dtype)
    ones = torch.ones(2, dtype=torch.float64)
    layers = (
        scale_output(conv, ones),
        scale_output(linear, ones),
        shift_input(linear, ones, ones),
        conv_with(conv, widened(conv.weight), widened(ones)),
    )
    for layer in layers:
        assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
        assert not layer.training


def test_plain_conv_pads_by_half_its_kernel():
    conv = plain_conv(torch.zeros(4, 1, 3, 5), torch.zeros(4), like=torch.zeros(1), groups=4)
    assert (conv.in_channels, conv.out_channels, conv.groups, conv.padding) == (4, 4, 4, (1, 2))
    assert conv(torch.zeros(1, 4, 6, 6)).shape == (1, 4, 6, 6)
    assert plain_conv(torch.zeros(4, 1, 3, 5), torch.zeros(4), like=torch.zeros(1), padding=(0, 0)).padding == (0, 0)
