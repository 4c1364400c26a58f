"""Text towers that read the mean of their tokens, and those without a layer."""

import attrs
import pytest
import torch

from mobileclip.blocks import MeanTokenPool
from mobileclip.encoders import load_model, save_model
from mobileclip.inference.forms import TruncatedTextTower
from tests.encoders.small import MCT, TEXT, randomised

TOWERS = {
    "mct": attrs.evolve(MCT, pool="mean"),
    "transformer": attrs.evolve(TEXT, pool="mean"),
    "causal": attrs.evolve(TEXT, pool="mean", causal=True),
    "bag": attrs.evolve(TEXT, pool="mean", depth=0),
    "one token": attrs.evolve(TEXT, depth=0),
}
IDS = torch.tensor([[598, 7, 9, 4, 599, *[0] * 7], [598, *range(3, 13), 599], [598, 599, *[0] * 10]])


def test_the_mean_is_of_the_text_alone():
    features = torch.randn(3, 12, 5, dtype=torch.float64)
    expected = torch.stack([features[0, :5].mean(0), features[1].mean(0), features[2, :2].mean(0)])
    torch.testing.assert_close(MeanTokenPool()(features, IDS), expected)
    torch.testing.assert_close(MeanTokenPool(end_id=599)(features, IDS), expected)


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_a_file_keeps_it_and_computing_less_changes_nothing(name, tmp_path):
    tower = randomised(TOWERS[name])
    expected = tower(IDS)
    torch.testing.assert_close(TruncatedTextTower(tower)(IDS), expected, rtol=1e-5, atol=1e-5)
    save_model(tower, tmp_path / "text.safetensors")
    loaded = load_model(tmp_path / "text.safetensors", fold=False)
    assert loaded.spec == tower.spec
    assert torch.equal(loaded(IDS), expected)


@torch.inference_mode()
def test_words_in_a_bag_have_no_order_but_by_their_places():
    """Without a layer, what a token adds to the mean depends on itself and its place."""
    tower, ids = randomised(TOWERS["bag"]), IDS[:2]
    tower.position.data.zero_()
    torch.testing.assert_close(tower(ids[:, [0, 2, 1, *range(3, 12)]]), tower(ids))
