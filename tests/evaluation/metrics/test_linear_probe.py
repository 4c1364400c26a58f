"""Logistic regression on embeddings, against scikit-learn's."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mobileclip.evaluation.tasks.probe import chosen_linear_probe, fit_linear_probe
from tests.errors import fails


def clouds(noise=1.5, seed=0):
    """Embeddings around a centre of each of four classes."""
    generator = torch.Generator().manual_seed(seed)
    centres, labels = torch.randn(4, 6, generator=generator), torch.arange(120) % 4
    return centres[labels] + noise * torch.randn(120, 6, generator=generator), labels


def fit(image, labels, penalty, **options):
    return fit_linear_probe(image, labels, num_classes=4, penalty=penalty, **options)


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3])
def test_the_optimum_is_that_of_scikit_learn(penalty):
    from sklearn.linear_model import LogisticRegression

    image, labels = clouds()
    fitted = fit(image, labels, penalty)
    scaled = (F.normalize(image, dim=-1) * 6**0.5).double().numpy()
    theirs = LogisticRegression(C=1 / (penalty * len(image)), tol=1e-8, max_iter=10_000).fit(scaled, labels.numpy())
    probabilities = fitted.logits(image).softmax(dim=1)
    np.testing.assert_allclose(probabilities.numpy(), theirs.predict_proba(scaled), atol=2e-3)
    np.testing.assert_allclose(fitted.weight.numpy(), theirs.coef_, atol=2e-2)
    near = fit(image, labels, penalty, start=fit(image, labels, 1e-3))
    torch.testing.assert_close(near.weight, fitted.weight, atol=1e-3, rtol=0, msg="wherever it starts")


def test_the_penalty_is_the_one_that_is_best_on_what_was_held_out():
    image, labels = clouds(noise=2.5, seed=3)
    held_out = torch.arange(len(image)) % 5 == 0
    chosen = chosen_linear_probe(image, labels, held_out, num_classes=4, penalties=(1.0, 1e-2, 1e-6))
    right = {}
    for penalty in (1.0, 1e-2, 1e-6):
        fitted = fit(image[~held_out], labels[~held_out], penalty)
        right[penalty] = int((fitted.logits(image[held_out]).argmax(1) == labels[held_out]).sum())
    assert right[chosen.penalty] == max(right.values())
    assert len(set(right.values())) > 1
    torch.testing.assert_close(chosen.weight, fit(image, labels, chosen.penalty).weight)
    alone = chosen_linear_probe(image, labels, torch.zeros(len(image), dtype=torch.bool), num_classes=4)
    assert alone.penalty == 1e-4


def test_what_cannot_be_fitted_is_refused():
    image, labels = clouds()
    with fails(ValueError, "0"):
        fit(image, labels, 0)
    image[3, 0] = torch.nan
    with fails(ValueError, "image", "3"):
        fit(image, labels, 1.0)
