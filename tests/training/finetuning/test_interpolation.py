import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip import reparameterize
from mobileclip.training.finetuning import interpolate_weights
from tests.encoders.small import SMALL_MCT, embeddings
from tests.errors import fails
from tests.training.finetuning.models import SPECS, fresh, moved


@cache
def pair(name="mci"):
    before, after = fresh(SPECS[name], seed=0), fresh(SPECS[name], seed=1)
    for key, value in after.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(7)
    return before, after


@settings(max_examples=6)
@given(alpha=st.floats(0, 1))
def test_every_tensor_is_the_weighted_mean(alpha):
    between = interpolate_weights(*pair(), alpha)
    assert not between.training
    befores, afters = (model.state_dict() for model in pair())
    for name, value in between.state_dict().items():
        expected = afters[name]
        if value.is_floating_point():
            expected = (1 - alpha) * befores[name].double() + alpha * expected.double()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("name", SPECS)
def test_both_ends_are_exact_and_nothing_given_is_changed(name):
    models = pair(name)
    kept = copy.deepcopy(models)
    for alpha, model in enumerate(models):
        found = embeddings(interpolate_weights(*models, float(alpha)))
        torch.testing.assert_close(found, embeddings(model), rtol=1e-5, atol=1e-6)
        assert not moved(model, kept[alpha])


def test_mistakes_are_named():
    before, after = pair()
    wider = copy.deepcopy(after)
    wider.text_encoder.project = torch.nn.Linear(32, 30, bias=False)
    for one, other, alpha, *words in (
        (before, after, 1.5, "1.5"),
        (before, fresh(SMALL_MCT), 0.5),
        (reparameterize(before), reparameterize(after), 0.5),
        (before, wider, 0.5, "text_encoder.project.weight", "(24, 32)", "(30, 32)"),
    ):
        with fails(ValueError, *words):
            interpolate_weights(one, other, alpha)
