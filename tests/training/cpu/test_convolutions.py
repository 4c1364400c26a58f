"""The convolution that is quick on a CPU is PyTorch's, in values and gradients, whatever way it takes."""

import copy

import pytest
import torch
from torch import nn

from mobileclip.blocks import MobileOneBlock
from mobileclip.training.cpu import fuse_for_cpu
from tests.blocks.filling import filled, noise
from tests.preloaded import preloaded

EXACT = {"rtol": 1e-12, "atol": 1e-12}
WIDE = {"kernel_size": 7, "padding": 3, "groups": 6}
SHAPES = {
    "wide": WIDE,
    "row": {"kernel_size": (1, 11), "padding": (0, 5), "groups": 6},
    "four_columns_unpadded": {"kernel_size": (2, 4), "groups": 6},
    "narrow": {"kernel_size": (7, 3), "padding": (3, 1), "groups": 6},
    "strided": {**WIDE, "stride": 2},
    "strided_wider": {**WIDE, "stride": 2, "out_channels": 18},
    "wider": {**WIDE, "out_channels": 12},
    "picking": {"kernel_size": 1, "stride": 2, "out_channels": 8},
    "picking_unevenly": {"kernel_size": 1, "stride": (3, 2), "groups": 2},
    "picking_padded": {"kernel_size": 1, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 5, "padding": 4, "dilation": 2, "groups": 6},
    "same": {"kernel_size": 5, "padding": "same", "groups": 6},
    "circular": {"kernel_size": 5, "padding": 2, "groups": 6, "padding_mode": "circular"},
    "dense": {"kernel_size": 5, "padding": 2, "out_channels": 4},
}


QUICK = {"wide", "row", "four_columns_unpadded", "strided_wider", "picking"}


def pair(name, *, bias):
    """Our convolution and PyTorch's with the same weights, in float64."""
    choices = {"in_channels": 6, "out_channels": 6, "bias": bias, **SHAPES[name]}
    ours, theirs = (filled(nn.Conv2d(**choices)).double().train() for _ in range(2))
    quick = fuse_for_cpu(ours)
    assert (type(quick) is not nn.Conv2d) == (name in QUICK)
    return quick, theirs


def gradients(conv, x, *, of_input=True):
    own = x.clone().requires_grad_(of_input)
    y = conv(own)
    (y * noise(*y.shape, seed=1).to(y)).sum().backward()
    return [y.detach(), own.grad, *(parameter.grad for parameter in conv.parameters())]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_values_and_gradients_are_pytorchs(name, bias, layout):
    ours, theirs = pair(name, bias=bias)
    x = noise(2, 6, 9, 14, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(gradients(ours, x), gradients(theirs, x), **EXACT)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), check_stride=True, **EXACT)


@pytest.mark.parametrize("name", ["wide", "strided_wider", "picking"])
def test_frozen_weights_and_inputs_without_gradient(name):
    ours, theirs = pair(name, bias=True)
    x = noise(2, 6, 9, 14, dtype=torch.float64)
    y, of_input, *of_weights = gradients(theirs, x)
    found = gradients(ours, x, of_input=False)
    assert found.pop(1) is None
    torch.testing.assert_close(found, [y, *of_weights], **EXACT)
    ours.zero_grad()
    ours.weight.requires_grad_(False)
    found = gradients(ours, x)
    assert found.pop(2) is None
    torch.testing.assert_close(found, [y, of_input, of_weights[1]], **EXACT)


def test_autocast_decides_the_type():
    plain, x = filled(nn.Conv2d(6, 6, 7, padding=3, groups=6)).train(), noise(2, 6, 9, 9)
    conv = fuse_for_cpu(copy.deepcopy(plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
        results = gradients(conv, x), gradients(plain, x)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_a_convolution_and_what_its_stride_picks(layout):
    """In a block that adds them up."""
    block = filled(MobileOneBlock(6, groups=6, stride=2)).double().train()
    other = fuse_for_cpu(copy.deepcopy(block))
    x = noise(2, 6, 9, 14, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(gradients(other, x), gradients(block, x), **EXACT)


CRASHING = """
import sys
import torch
from mobileclip.blocks import ConvStem
from mobileclip.training.cpu import fuse_for_cpu
stem = fuse_for_cpu(ConvStem(64).train())
if sys.argv[1:]:
    stem.compile()
x = torch.rand(2, 3, 256, 256).to(memory_format=torch.channels_last).requires_grad_()
for precision in ("float32", "bfloat16"):
    print(precision, flush=True)
    x.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        stem(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
"""


@pytest.mark.parametrize("arguments", [[], pytest.param(["compiled"], marks=pytest.mark.slow)], ids=["", "compiled"])
def test_the_stem_trains_with_channels_innermost(arguments, tmp_path):
    """In a process of its own, since oneDNN's crash would end this one; what it printed last is where."""
    called = ("tests.preloaded:python", "-c", CRASHING, *arguments)
    ended = preloaded().call(*called, folder=tmp_path, seconds=600)
    assert ended.status == 0, ended.output
