from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.evaluation.metrics import hit_probability, require_embeddings
from tests.errors import fails


def by_enumeration(scores: list[int], relevant: list[bool], k: int) -> float:
    """All orders that sort the scores downwards, each as likely as the next."""
    orders = [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    return sum(any(relevant[index] for index in order[:k]) for order in orders) / len(orders)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ties_are_broken_as_chance_would(data):
    columns = data.draw(st.integers(1, 6))
    scores = data.draw(st.lists(st.integers(0, 2), min_size=columns, max_size=columns))
    relevant = data.draw(st.lists(st.booleans(), min_size=columns, max_size=columns).filter(any))
    k = data.draw(st.integers(1, 7))
    found = hit_probability(torch.tensor([scores]).float(), torch.tensor([relevant]), k)
    assert found.item() == pytest.approx(by_enumeration(scores, relevant, k), abs=1e-12)


def test_a_constant_model_gets_what_guessing_gets():
    relevant = torch.zeros(1, 1000, dtype=torch.bool)
    relevant[0, 17] = True
    found = hit_probability(torch.zeros(1, 1000), relevant, 10)
    assert found.item() == pytest.approx(0.01, rel=1e-9)


def test_what_cannot_be_ranked_is_refused():
    with fails(ValueError, "torch.float32", "(3,)"):
        require_embeddings("image", torch.zeros(3))
    with fails(ValueError, "text"):
        require_embeddings("text", torch.zeros(0, 4))
    with fails(ValueError, "4", "5"):
        require_embeddings("text", torch.zeros(2, 4), dim=5)
    broken = torch.zeros(4, 2)
    broken[2:, 1] = torch.nan
    with fails(ValueError, "image", "2"):
        require_embeddings("image", broken)
