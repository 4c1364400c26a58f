"""The seven FastViTs, by their names, as timm builds them."""

import pytest
import timm
import torch

from mobileclip import build_model, specs
from mobileclip.interop import timm_config
from tests.blocks.filling import filled, noise
from tests.encoders.timm_pairs import with_our_weights

NAMES = ("fastvit_t8", "fastvit_t12", "fastvit_s12", "fastvit_sa12", "fastvit_sa24", "fastvit_sa36", "fastvit_ma36")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name.endswith(("24", "36")) else []) for name in NAMES]
)
def test_it_is_timms_with_the_same_weights(name):
    encoder = filled(build_model(name))
    theirs = with_our_weights(encoder, timm.create_model(name, num_classes=0))
    images = noise(1, 3, 64, 64)
    with torch.inference_mode():
        ours = encoder(images)
        torch.testing.assert_close(ours, theirs(images), rtol=1e-4, atol=1e-5 * float(ours.abs().max()))
    asked = timm_config(encoder.spec, licence="mit")
    assert asked["architecture"] == name
    assert "model_args" not in asked


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_as_many_as_timms(name):
    with torch.device("meta"):
        ours, theirs = getattr(specs, name)().build(), timm.create_model(name, num_classes=0)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]


def test_its_input_is_that_of_its_training():
    theirs = timm.get_pretrained_cfg("fastvit_sa12.apple_in1k")
    ours = specs.fastvit_sa12().input
    assert (ours.size, ours.interpolation) == (theirs.input_size[1], theirs.interpolation)
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
