"""Stochastic depth: whole samples, in training alone, with the mean that evaluation has."""

import attrs
import pytest
import torch

from mobileclip import specs
from mobileclip.blocks import DropPath, RepMixerBlock, TransformerLayer
from tests.blocks.filling import noise
from tests.errors import fails


def test_whole_samples_are_dropped_and_the_mean_stays():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    y = DropPath(0.25).train()(x)
    torch.testing.assert_close(y.flatten(1).unique(dim=0), torch.tensor([[0.0] * 6, [4 / 3] * 6]))
    assert y.mean() == pytest.approx(1, abs=0.03)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    for rate in (1.0, -0.1, float("nan")):
        with fails(ValueError):
            DropPath(rate)


def test_a_dropped_block_is_its_mixer():
    torch.manual_seed(0)
    block, x = RepMixerBlock(4, layer_scale=1.0, drop_path=0.5).train(), noise(64, 4, 5, 5)
    y = block(x)
    kept = [not torch.equal(*rows) for rows in zip(y, block.token_mixer(x), strict=True)]
    assert 16 < sum(kept) < 48


def test_a_dropped_transformer_layer_leaves_out_each_of_its_branches():
    torch.manual_seed(0)
    layer, x = TransformerLayer(8, num_heads=2, drop_path=0.5).train(), noise(400, 3, 8)
    attended = x + 2 * layer.attention(layer.attention_norm(x))
    expected = [middle + kept * layer.ffn(layer.ffn_norm(middle)) for middle in (x, attended) for kept in (0, 2)]
    y = layer(x)
    found = torch.stack([torch.isclose(y, one, atol=1e-5).flatten(1).all(dim=1) for one in expected])
    assert found.any(dim=0).all()
    assert (found.sum(dim=1) > 60).all()


@pytest.mark.parametrize(("spec", "num_blocks"), [(specs.mci0(), 20), (specs.vit_l14(), 24)], ids=["mci0", "vit_l14"])
def test_rates_grow_evenly_over_the_blocks(spec, num_blocks):
    with torch.device("meta"):
        encoder, plain = attrs.evolve(spec, drop_path=0.01 * (num_blocks - 1)).build(), spec.build()
    rates = [module.rate for module in encoder.modules() if isinstance(module, DropPath)]
    assert sorted(set(rates)) == pytest.approx([0.01 * block for block in range(num_blocks)])
    assert rates == sorted(rates)
    assert not any(module.rate for module in plain.modules() if isinstance(module, DropPath))
