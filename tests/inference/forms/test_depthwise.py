"""Convolutions of several outputs for every channel give the same as depthwise ones."""

import copy

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import ConvPoolHead, Downsample, RepMixer
from mobileclip.inference.forms import DepthwiseConvs, with_depthwise_convs
from tests.blocks.filling import filled, noise

EXACT = {"rtol": 1e-12, "atol": 1e-12}
BLOCKS = {
    "downsample": lambda: Downsample(6, out_dim=12, squeeze_excite=True),
    "three_outputs": lambda: Downsample(6, out_dim=18),
    "head": lambda: ConvPoolHead(8, embedding_dim=5),
}


def folded(name):
    return reparameterize(filled(BLOCKS[name]()).double())


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@torch.inference_mode()
def test_nothing_changes_but_the_layers(name, layout):
    block = folded(name)
    state = copy.deepcopy(block.state_dict())
    split = with_depthwise_convs(block)
    channels = 8 if name == "head" else 6
    x = noise(2, channels, 9, 14, dtype=torch.float64).contiguous(memory_format=layout)
    y = split(x)
    torch.testing.assert_close(y, block(x), **EXACT)
    assert y.ndim < 4 or y.is_contiguous(memory_format=layout)
    convs = [module for module in split.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.groups in (1, conv.out_channels) for conv in convs)
    assert sum(isinstance(module, DepthwiseConvs) for module in split.modules()) == 1
    torch.testing.assert_close(block.state_dict(), state, rtol=0, atol=0)


@torch.inference_mode()
def test_one_of_the_layers_may_be_wider():
    split = with_depthwise_convs(folded("three_outputs").float())
    block, x = split[0].conv, noise(2, 6, 8, 8)
    expected = block(x)
    block.convs[1].double()
    block.convs[1].register_forward_pre_hook(lambda _, taken: (taken[0].double(),))
    torch.testing.assert_close(block(x), expected.double(), rtol=1e-5, atol=1e-5)


def test_weights_follow_the_convolution_and_copies_have_memory_of_their_own():
    """Inductor freezes rows of one weight wrongly."""
    block = folded("three_outputs")
    split = with_depthwise_convs(block)
    x = noise(2, 6, 9, 14, dtype=torch.float64)
    with torch.no_grad():
        block[0].conv.weight.mul_(2)
        torch.testing.assert_close(split(x), block(x), **EXACT)
    convs = [block[0].conv, *copy.deepcopy(split)[0].conv.convs]
    for tensors in ([conv.weight for conv in convs], [conv.bias for conv in convs]):
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 4
        assert all(tensor.is_contiguous() for tensor in tensors)


def test_other_modules_stay_as_they_are():
    block = reparameterize(filled(nn.Sequential(RepMixer(6), nn.Conv2d(1, 4, 3), nn.Conv2d(6, 12, 1, groups=3))))
    assert with_depthwise_convs(block) is block


def test_a_module_under_two_names_is_replaced_under_both():
    block = folded("downsample")
    twice = with_depthwise_convs(nn.ModuleDict({"first": block[0], "second": block[0]}))
    assert all(isinstance(twice[name].conv, DepthwiseConvs) for name in twice)
