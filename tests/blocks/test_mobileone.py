"""The MobileOne block: which branches it has, and what it refuses."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import MobileOneBlock, SqueezeExcite
from tests.blocks.filling import filled, noise
from tests.errors import fails


def test_the_default_has_three_branches_and_no_skip_where_the_shape_changes():
    block = MobileOneBlock(4)
    assert (len(block.branches), block.scale is None, block.skip is None) == (1, False, False)
    for changes in ({"out_dim": 8}, {"stride": 2}):
        assert MobileOneBlock(4, **changes).skip is None


@pytest.mark.parametrize(("kernel_size", "scale"), [((3, 3), True), ((3, 1), True), ((1, 11), False), ((1, 1), False)])
def test_a_scale_branch_where_the_kernel_is_taller_than_one_row(kernel_size, scale):
    """The release looks at the first side alone, so that text's (1, 11) kernels have none."""
    assert (MobileOneBlock(4, kernel_size=kernel_size).scale is not None) == scale


def test_the_gate_and_the_activation_follow_the_sum_of_the_branches():
    block, x = filled(MobileOneBlock(4, num_branches=2, activation=None)), noise(2, 4, 5, 5)
    first, second = block.branches
    torch.testing.assert_close(block(x), first(x) + second(x) + block.scale(x) + block.skip(x))
    block, x = filled(MobileOneBlock(32, squeeze_excite=True)), noise(2, 32, 5, 5)
    total = block.branches[0](x) + block.scale(x) + block.skip(x)
    torch.testing.assert_close(block(x), nn.functional.gelu(block.squeeze_excite(total)))


def test_folded_it_is_a_convolution_with_what_followed():
    plain = reparameterize(filled(MobileOneBlock(4, activation=None)))
    assert [type(layer) for layer in plain] == [nn.Conv2d]
    full = reparameterize(filled(MobileOneBlock(4, out_dim=8, stride=2, groups=2, squeeze_excite=True)))
    assert [type(layer) for layer in full] == [nn.Conv2d, SqueezeExcite, nn.GELU]
    assert (full[0].stride, full[0].padding, full[0].groups) == ((2, 2), (1, 1), 2)


def test_parameters_are_fewer_by_exactly_the_branches():
    block = filled(MobileOneBlock(4, num_branches=3))
    folded = reparameterize(block)
    assert sum(parameter.numel() for parameter in folded.parameters()) == 4 * 4 * 9 + 4
    assert sum(parameter.numel() for parameter in block.parameters()) == 3 * (4 * 4 * 9 + 8) + (16 + 8) + 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(({"kernel_size": size}, (str(size),)) for size in ((2, 3), (3, 4), (2, 2))),
        ({"out_dim": 8, "skip": True}, ("4", "8", "1")),
        ({"stride": 2, "skip": True}, ("4", "2")),
        ({"num_branches": 0, "scale_branch": False, "skip": False}, ()),
        ({"out_dim": 8, "kernel_size": (1, 1), "num_branches": 0}, ()),
        ({"groups": 3}, ("groups",)),
    ],
)
def test_what_is_no_block_is_refused(arguments, named):
    with fails(ValueError, *named):
        MobileOneBlock(4, **arguments)


def test_in_training_batches_decide_and_in_evaluation_statistics():
    block, x = MobileOneBlock(4), noise(8, 4, 5, 5)
    alone = block.train()(x[:4])
    assert not torch.allclose(block(x)[:4], alone)
    block.eval()
    torch.testing.assert_close(block(x)[:4], block(x[:4]))
