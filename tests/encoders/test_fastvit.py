"""The seven FastViTs, by their names, as timm builds them."""

import pytest
import torch

from mobileclip import build_model, specs
from mobileclip.encoders.checkpoints import skeleton
from mobileclip.interop import timm_config
from tests.blocks.filling import filled, noise
from tests.encoders.timm_pairs import with_our_weights
from tests.lazily import lazily

timm = lazily("timm")

NAMES = ("fastvit_t8", "fastvit_t12", "fastvit_s12", "fastvit_sa12", "fastvit_sa24", "fastvit_sa36", "fastvit_ma36")


# One of each kind of stage; the others are deeper and wider, which the tensors of all say.
BY_DEFAULT = ("fastvit_t8", "fastvit_sa12")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one not in BY_DEFAULT)) for one in NAMES]
)
def test_it_is_timms_with_the_same_weights(name):
    encoder = filled(build_model(name))
    theirs = with_our_weights(encoder, timm.create_model(name, num_classes=0))
    images = noise(1, 3, 64, 64)
    with torch.inference_mode():
        ours = encoder(images)
        torch.testing.assert_close(ours, theirs(images), rtol=1e-4, atol=1e-5 * float(ours.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_as_many_as_timms(name):
    """And have the same shapes, under the names that the layout gives them."""
    spec = getattr(specs, name)()
    ours = skeleton(spec, "training")
    with torch.device("meta"):
        theirs = with_our_weights(ours, timm.create_model(name, num_classes=0))
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    asked = timm_config(spec, licence="mit")
    assert asked["architecture"] == name
    assert "model_args" not in asked


def test_its_input_is_that_of_its_training():
    theirs = timm.get_pretrained_cfg("fastvit_sa12.apple_in1k")
    ours = specs.fastvit_sa12().input
    assert (ours.size, ours.interpolation) == (theirs.input_size[1], theirs.interpolation)
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
