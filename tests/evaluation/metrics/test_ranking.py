from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.evaluation.metrics import hit_probability, require_embeddings
from tests.errors import fails


def by_enumeration(scores, relevant, k):
    """All orders that sort the scores downwards, each as likely as the next."""
    orders = permutations(range(len(scores)))
    hits = [
        any(relevant[i] for i in one[:k]) for one in orders if all(scores[a] >= scores[b] for a, b in pairwise(one))
    ]
    return sum(hits) / len(hits)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_ties_are_broken_as_chance_would(columns, k):
    scores, relevant = map(list, zip(*columns, strict=True))
    relevant[0] |= not any(relevant)
    found = hit_probability(torch.tensor([scores]).float(), torch.tensor([relevant]), k)
    assert found.item() == pytest.approx(by_enumeration(scores, relevant, k), abs=1e-12)


def test_a_constant_model_gets_what_guessing_gets():
    found = hit_probability(torch.zeros(1, 1000), torch.arange(1000)[None] == 17, 10)
    assert found.item() == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "embeddings", "dim", "words"),
    [
        ("image", torch.zeros(3), None, ["torch.float32", "(3,)"]),
        ("text", torch.zeros(0, 4), None, ["text"]),
        ("text", torch.zeros(2, 4), 5, ["4", "5"]),
        ("image", torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, torch.nan], [0.0, torch.nan]]), None, ["image", "2"]),
    ],
)
def test_what_cannot_be_ranked_is_refused(name, embeddings, dim, words):
    with fails(ValueError, *words):
        require_embeddings(name, embeddings, dim=dim)
