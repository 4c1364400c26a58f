"""Text towers that read the mean of their tokens, and those without a layer."""

import attrs
import pytest
import torch

from mobileclip.blocks import MeanTokenPool
from mobileclip.encoders import load_model, save_model
from mobileclip.inference.forms import TruncatedTextTower
from tests.encoders.small import MCT, TEXT, randomised
from tests.errors import fails

TOWERS = {
    "mct": attrs.evolve(MCT, pool="mean"),
    "transformer": attrs.evolve(TEXT, pool="mean"),
    "causal": attrs.evolve(TEXT, pool="mean", causal=True),
    "bag": attrs.evolve(TEXT, pool="mean", depth=0),
    "one token": attrs.evolve(TEXT, depth=0),
}
IDS = torch.tensor([[598, 7, 9, 4, 599, *[0] * 7], [598, *range(3, 13), 599], [598, 599, *[0] * 10]])


@pytest.fixture(params=TOWERS)
def tower(request):
    return randomised(TOWERS[request.param])


def embedded(tower):
    with torch.inference_mode():
        return tower(IDS)


def test_the_mean_is_of_the_text_alone():
    features = torch.randn(3, 12, 5, dtype=torch.float64)
    expected = torch.stack([features[0, :5].mean(0), features[1].mean(0), features[2, :2].mean(0)])
    torch.testing.assert_close(MeanTokenPool()(features, IDS), expected)
    torch.testing.assert_close(MeanTokenPool(end_id=599)(features, IDS), expected)


def test_what_is_computed_less_of_is_exact(tower):
    torch.testing.assert_close(TruncatedTextTower(tower)(IDS), embedded(tower), rtol=1e-5, atol=1e-5)


def test_a_file_keeps_it(tower, tmp_path):
    save_model(tower, tmp_path / "text.safetensors")
    loaded = load_model(tmp_path / "text.safetensors", fold=False)
    assert loaded.spec == tower.spec
    assert torch.equal(embedded(loaded), embedded(tower))


@pytest.mark.parametrize("layout", ["official", "open_clip"])
def test_code_that_reads_the_end_token_gets_no_other(layout, tmp_path):
    tower = randomised(TOWERS["transformer"])
    with fails(ValueError, layout):
        save_model(tower, tmp_path / "text.pt", layout=layout)


def test_words_in_a_bag_have_no_order_but_by_their_places():
    """Without a layer, what a token adds to the mean depends on itself and its place."""
    tower = randomised(TOWERS["bag"])
    tower.position.data.zero_()
    ids = IDS[:2]
    with torch.inference_mode():
        torch.testing.assert_close(tower(ids[:, [0, 2, 1, *range(3, 12)]]), tower(ids))
