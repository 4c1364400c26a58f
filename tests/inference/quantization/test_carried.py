"""Ranges that a tower carries, in what exporters make of it: the same numbers, by operations that runtimes know."""

import pytest
import torch
from torch import nn

from mobileclip.inference import weighted_layers
from mobileclip.inference.forms import with_depthwise_convs, with_one_token
from mobileclip.inference.quantization import (
    observed_ranges,
    ranges_of_form,
    rounded,
    with_int8_layers,
    with_rounded_weights,
)
from tests.errors import fails
from tests.inference.quantization.towers import TOWERS, tower_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=TOWERS)
def case(request):
    """A quantised tower, and inputs."""
    tower, inputs = tower_of(request.param)
    return with_rounded_weights(tower, rounded(tower, observed_ranges(tower, lambda: [inputs]))), inputs


def test_every_layer_of_a_form_has_the_ranges_of_the_layer_that_it_is_of(case):
    tower, inputs = case
    assert ranges_of_form(tower).keys() == tower.ranges.keys()
    assert all(torch.equal(one, tower.ranges[name]) for name, one in ranges_of_form(tower).items())
    form = with_depthwise_convs(with_one_token(tower))
    found = ranges_of_form(form)
    assert {f"{name}.weight" for name, _ in weighted_layers(form)} == {one for one in found if one.endswith("weight")}
    expected = rounded(tower, tower.ranges)(inputs)
    # Both round the same numbers, which only the order of a sum may differ.
    torch.testing.assert_close(rounded(form, found)(inputs), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(with_int8_layers(form, found)(inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_tower_without_ranges_has_none_and_stays_as_it_is():
    tower = nn.Sequential(nn.Linear(4, 4)).eval()
    assert ranges_of_form(tower) == {}
    assert with_int8_layers(tower, {})[0] is tower[0]


def test_ranges_of_another_tower_are_refused_by_name():
    tower = nn.Sequential(nn.Linear(2, 2)).eval()
    ranges = observed_ranges(tower, lambda: [torch.rand(3, 2)])
    with fails(ValueError, "1", "other"):
        ranges_of_form(tower, {**ranges, "other.weight": torch.ones(2), "other.input": torch.ones(2)})
    with fails(ValueError, "2", "3"):
        ranges_of_form(tower, {**ranges, "0.weight": torch.ones(3)})
