"""Which layers are rounded: those that gain by it, without the few that lose most, and the file says which."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.inference import weighted_layers
from mobileclip.inference.quantization import (
    PlacesSpec,
    TowerQuality,
    layers_in_float32,
    quantised_layers,
    rounded,
    with_rounded_weights,
)
from tests.export.models import CONVOLUTIONAL, pixels, seeing

pytestmark = pytest.mark.usefixtures("one_thread")


def test_grouped_convolutions_and_outputs_are_rounded_where_that_is_asked():
    tower, inputs = reparameterize(seeing(CONVOLUTIONAL)).image_encoder, pixels(CONVOLUTIONAL.image.input)
    grouped = {name for name, one in weighted_layers(tower) if isinstance(one, nn.Conv2d) and one.groups > 1}
    found = PlacesSpec().observed(tower, lambda: [inputs])
    assert grouped
    assert quantised_layers(found) == {name for name, _ in weighted_layers(tower)} - grouped
    assert not [name for name in found if name.endswith(".output")]
    everywhere = PlacesSpec(grouped=True, outputs=True).observed(tower, lambda: [inputs])
    assert quantised_layers(everywhere) == {name for name, _ in weighted_layers(tower)}
    assert {f"{name}.output" for name in grouped} < everywhere.keys()
    with torch.no_grad():
        losses = [
            1 - TowerQuality.of(rounded(tower, one)(inputs), tower(inputs)).mean_cosine for one in (found, everywhere)
        ]
    assert losses[0] < 0.8 * losses[1]


@pytest.fixture(scope="module")
def uneven():
    """A tower of which one small layer cannot be rounded: one input is far larger than the others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 8), nn.Linear(8, 8)).eval()
        inputs = torch.randn(64, 16)
    with torch.no_grad():
        tower[2].bias[0] = 1e4
        tower[3].weight[:, 0] = 0
    return tower.requires_grad_(requires_grad=False), inputs


@torch.no_grad()
def test_the_layer_that_loses_most_stays_in_float32_where_the_gates_refuse_it(uneven):
    tower, inputs = uneven
    ranges, checked = PlacesSpec().observed(tower, lambda: [inputs], whole=True), [inputs[:32], inputs[32:]]
    expected = tower(inputs)
    assert TowerQuality.of(rounded(tower, ranges)(inputs), expected).refusal
    told = []
    found = PlacesSpec().without_worst(tower, ranges, checked, tell=told.append)
    assert sorted(told) == ["0", "1", "2", "3"]
    assert quantised_layers(found) == {"0", "1", "2"}
    made = with_rounded_weights(tower, rounded(tower, found))
    assert layers_in_float32(made) == ["3"]
    assert torch.equal(made[3].weight, tower[3].weight)
    assert TowerQuality.of(rounded(tower, found)(inputs), expected).smallest_cosine > 0.98


@pytest.mark.parametrize("most", [0.0, 0.001])
def test_no_more_stays_in_float32_than_may(uneven, most):
    tower, inputs = uneven
    ranges = PlacesSpec().observed(tower, lambda: [inputs], whole=True)
    assert PlacesSpec(most_float=most).without_worst(tower, ranges, [inputs]).keys() == ranges.keys()


def test_where_the_gates_pass_nothing_is_left_out(uneven):
    tower, inputs = uneven[0][:2], uneven[1]
    ranges = PlacesSpec().observed(tower, lambda: [inputs], whole=True)
    assert PlacesSpec().without_worst(tower, ranges, [inputs]).keys() == ranges.keys()
