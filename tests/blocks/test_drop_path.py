"""Stochastic depth: whole samples, in training alone, with the mean that evaluation has."""

import attrs
import pytest
import torch

from mobileclip.blocks import DropPath, RepMixerBlock
from mobileclip.encoders import specs
from tests.blocks.filling import noise


def test_whole_samples_are_dropped_and_the_mean_stays():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    y = DropPath(0.25).train()(x)
    torch.testing.assert_close(y.flatten(1).unique(dim=0), torch.tensor([[0.0] * 6, [4 / 3] * 6]))
    assert y.mean() == pytest.approx(1, abs=0.03)


def test_evaluation_and_a_rate_of_zero_change_nothing():
    x = noise(3, 4)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        DropPath(rate)


def test_a_dropped_block_is_its_mixer():
    torch.manual_seed(0)
    block, x = RepMixerBlock(4, layer_scale=1.0, drop_path=0.5).train(), noise(64, 4, 5, 5)
    y = block(x)
    kept = [not torch.equal(*rows) for rows in zip(y, block.token_mixer(x), strict=True)]
    assert 16 < sum(kept) < 48


def test_rates_grow_evenly_over_the_blocks():
    with torch.device("meta"):
        encoder = attrs.evolve(specs.mci0(), drop_path=0.19).build()
    rates = [module.rate for module in encoder.modules() if isinstance(module, DropPath)]
    blocks = sorted(set(rates))
    assert blocks == pytest.approx([0.01 * block for block in range(20)])
    assert rates == sorted(rates)
