"""Towers that round as int8 runtimes do: what is rounded, what is shared, and what is left of it in the weights."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.inference import weighted_layers
from mobileclip.inference.quantization import (
    LARGEST_VALUE,
    LARGEST_WEIGHT,
    RoundedLayer,
    observed_ranges,
    ranges_of,
    rounded,
    with_rounded_weights,
)
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, pixels, seeing
from tests.inference.quantization.towers import TOWERS, tower_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=TOWERS)
def case(request):
    """A tower, its inputs and ranges that were observed on them."""
    tower, inputs = tower_of(request.param)
    return tower, inputs, observed_ranges(tower, lambda: torch.split(inputs, 4))


def cosines(tower, other, inputs):
    with torch.no_grad():
        return torch.cosine_similarity(tower(inputs), other(inputs))


def test_every_layer_is_rounded_and_embeddings_stay_near(case):
    tower, inputs, ranges = case
    found = rounded(tower, ranges)
    layers = {name: module for name, module in found.named_modules() if isinstance(module, RoundedLayer)}
    assert layers.keys() == {name for name, _ in weighted_layers(tower)}
    assert not any(isinstance(module, RoundedLayer) for module in tower.modules())
    assert cosines(tower, found, inputs).min() > 0.97
    assert not torch.equal(tower(inputs), found(inputs))


def test_ranges_are_what_a_runtime_takes(case):
    tower, _, ranges = case
    layers = dict(weighted_layers(tower))
    outputs = {name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    assert ranges.keys() == {
        *(f"{name}.{kind}" for name in layers for kind in ("weight", "input")),
        *(f"{name}.output" for name in outputs),
    }
    again = ranges_of(rounded(tower, ranges))
    for name, values in ranges.items():
        if name.endswith(".weight"):
            assert values.shape == (len(layers[name.removesuffix(".weight")].weight),)
            assert (values > 0).all()
        else:
            step, zero = values
            assert step > 0
            assert 0 <= zero <= LARGEST_VALUE
            assert zero == zero.round()
        assert torch.equal(again[name], values)


def test_rounded_weights_lie_on_their_grid_and_are_not_rounded_again(case):
    tower, inputs, ranges = case
    before = tower(inputs)
    tuned = rounded(tower, ranges)
    found = with_rounded_weights(tower, tuned)
    assert torch.equal(tower(inputs), before)
    for name, layer in weighted_layers(found):
        steps = layer.weight / found.ranges[f"{name}.weight"].reshape(-1, *(1,) * (layer.weight.ndim - 1))
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert steps.abs().max() < LARGEST_WEIGHT + 0.5
    assert torch.equal(rounded(found, found.ranges)(inputs), tuned(inputs))


def test_layers_that_are_kept_stay_as_they_are():
    tower = reparameterize(seeing(CONVOLUTIONAL)).image_encoder
    inputs = pixels(CONVOLUTIONAL.image.input)
    names = [name for name, _ in weighted_layers(tower)]
    ranges = observed_ranges(tower, lambda: [inputs], kept=names[1:])
    assert {name.rpartition(".")[0] for name in ranges} == {names[0]}
    found = rounded(tower, ranges)
    own, others = dict(weighted_layers(found)), dict(weighted_layers(tower))
    assert all(own[name] is others[name] for name in names[1:])
    assert torch.equal(rounded(tower, {})(inputs), tower(inputs))


def test_a_layer_in_two_places_is_rounded_once():
    layer = nn.Linear(4, 4)
    tower = nn.Sequential(layer, nn.ReLU(), layer).eval()
    inputs = torch.rand(8, 4)
    found = rounded(tower, observed_ranges(tower, lambda: [inputs]))
    assert found[0] is found[2]
    assert isinstance(found[0], RoundedLayer)
    assert found[0].layer is layer


def test_zeros_around_an_image_stay_zeros():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).eval()
    nn.init.ones_(conv.weight)
    inputs = torch.full((1, 1, 3, 3), 5.0)
    found = rounded(nn.Sequential(conv).eval(), observed_ranges(nn.Sequential(conv).eval(), lambda: [inputs]))
    with torch.no_grad():
        torch.testing.assert_close(found(inputs), conv(inputs), atol=0.2, rtol=0)
        assert torch.equal(found(torch.zeros(1, 1, 3, 3)), torch.zeros(1, 1, 3, 3))


def test_ranges_of_another_tower_are_refused():
    tower = nn.Sequential(nn.Linear(2, 2)).eval()
    with fails(ValueError, "1", "other"):
        rounded(tower, {"other.input": torch.ones(2)})
    with fails(ValueError, "0.input"):
        observed_ranges(tower, list)
    with fails(ValueError, "0.input"):
        observed_ranges(tower, lambda: [torch.tensor([[1.0, torch.nan]])])
