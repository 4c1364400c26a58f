import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip import reparameterize
from mobileclip.training.finetuning import interpolate_weights
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, embeddings
from tests.errors import fails
from tests.training.finetuning.models import fresh


@cache
def pair(spec=SMALL):
    before, after = fresh(spec, seed=0), fresh(spec, seed=1)
    with torch.no_grad():
        for name, value in after.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(7)
    return before, after


@settings(max_examples=6, deadline=None)
@given(alpha=st.floats(0, 1))
def test_every_tensor_is_the_weighted_mean(alpha):
    before, after = pair()
    between = interpolate_weights(before, after, alpha)
    assert not between.training
    befores, afters = before.state_dict(), after.state_dict()
    for name, value in between.state_dict().items():
        one, other = befores[name], afters[name]
        if value.is_floating_point():
            expected = (1 - alpha) * one.double() + alpha * other.double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, other)


@pytest.mark.parametrize("spec", [SMALL, SMALL_MCT, SMALL_VIT], ids=["mci", "mct", "vit"])
def test_both_ends_are_exact_and_nothing_given_is_changed(spec):
    before, after = pair(spec)
    kept = [copy.deepcopy(model.state_dict()) for model in (before, after)]
    for alpha, model in ((0.0, before), (1.0, after)):
        torch.testing.assert_close(
            embeddings(interpolate_weights(before, after, alpha)), embeddings(model), rtol=1e-5, atol=1e-6
        )
    for state, model in zip(kept, (before, after), strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_mistakes_are_named():
    before, after = pair()
    with fails(ValueError, "1.5"):
        interpolate_weights(before, after, 1.5)
    with fails(ValueError):
        interpolate_weights(before, fresh(SMALL_MCT), 0.5)
    with fails(ValueError):
        interpolate_weights(reparameterize(before), reparameterize(after), 0.5)
    wider = copy.deepcopy(after)
    wider.text_encoder.project = torch.nn.Linear(32, 30, bias=False)
    with fails(ValueError, "text_encoder.project.weight", "(24, 32)", "(30, 32)"):
        interpolate_weights(before, wider, 0.5)
