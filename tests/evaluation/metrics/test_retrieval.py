from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from mobileclip.evaluation import rank, rank_captions
from mobileclip.evaluation.metrics import hit_probability, require_embeddings
from tests.errors import fails


def brute_force(query, answer, query_ids, answer_ids, k):
    scores = (F.normalize(query.double(), dim=1) @ F.normalize(answer.double(), dim=1).T).numpy()
    best = np.argsort(-scores, axis=1)[:, :k]
    return pytest.approx((answer_ids.numpy()[best] == query_ids.numpy()[:, None]).any(axis=1).mean())


def test_recall_equals_brute_force_with_several_captions_an_image():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(40, 6, generator=generator)
    image_ids, text_ids = torch.arange(40) // 2, torch.arange(70) % 20
    text = image[2 * text_ids] + 1.2 * torch.randn(70, 6, generator=generator)
    result = rank(image, text, image_ids=image_ids, text_ids=text_ids, chunk_size=16).recall
    for k in (1, 5, 10):
        there, back = (getattr(one, f"at{k}") for one in (result.image_to_text, result.text_to_image))
        assert 0 < there < 1
        assert there == brute_force(image, text, image_ids, text_ids, k)
        assert back == brute_force(text, image, text_ids, image_ids, k)
    assert (result.num_images, result.num_texts) == (40, 70)


def test_a_collapsed_model_gets_what_guessing_gets():
    found = hit_probability(torch.zeros(1, 1000), torch.arange(1000)[None] == 17, 10)
    assert found.item() == pytest.approx(0.01, rel=1e-9)
    ids = torch.arange(50)
    result = rank(torch.ones(50, 4), torch.ones(100, 4), image_ids=ids, text_ids=ids.repeat(2)).recall
    assert (result.text_to_image.at1, result.text_to_image.at10) == pytest.approx((1 / 50, 10 / 50))
    assert result.image_to_text.at5 == pytest.approx(1 - (98 * 97 * 96 * 95 * 94) / (100 * 99 * 98 * 97 * 96))


MISTAKES = [
    ([0, 1, 2], [0, 1, 2, 7], ["text", "3", "7", "image", "0"]),
    ([0, 1, 2], [0, 1, 1], ["image", "2", "text"]),
    ([0, 1], [0, 1, 2], ["3", "image"]),
]


@pytest.mark.parametrize(("image_ids", "text_ids", "words"), MISTAKES)
def test_mistakes_are_named(image_ids, text_ids, words):
    text = torch.ones(len(text_ids), 3)
    with fails(ValueError, *words):
        rank(torch.eye(3), text, image_ids=torch.tensor(image_ids), text_ids=torch.tensor(text_ids))


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [2, 5, 1, 3]])
def test_the_mean_over_images_is_the_mean_recall(counts):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(sum(counts), 4, generator=generator)
    image = torch.randn(len(counts), 4, generator=generator) + text[[sum(counts[:i]) for i in range(len(counts))]]
    ranking = rank_captions(image, text, counts)
    recall, hits = ranking.recall, ranking.caption_hits
    assert hits.mean().item() == pytest.approx((recall.image_to_text.at1 + recall.text_to_image.at1) / 2)
    assert 0 < hits.mean() < 1
    with fails(ValueError, "image", "1", "text"):
        rank_captions(image, text, [counts[0], 0, *counts[2:]])


def by_enumeration(scores, relevant, k):
    """All orders that sort the scores downwards, each as likely as the next."""
    orders = [one for one in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(one))]
    hits = [any(relevant[index] for index in one[:k]) for one in orders]
    return sum(hits) / len(hits)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_ties_are_broken_as_chance_would(columns, k):
    scores, relevant = map(list, zip(*columns, strict=True))
    relevant[0] |= not any(relevant)
    found = hit_probability(torch.tensor([scores]).float(), torch.tensor([relevant]), k)
    assert found.item() == pytest.approx(by_enumeration(scores, relevant, k), abs=1e-12)


UNRANKED = [
    ("image", torch.zeros(3), None, ["torch.float32", "(3,)"]),
    ("text", torch.zeros(0, 4), None, ["text"]),
    ("text", torch.zeros(2, 4), 5, ["4", "5"]),
    ("image", torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, torch.nan], [0.0, torch.nan]]), None, ["image", "2"]),
]


@pytest.mark.parametrize(("name", "embeddings", "dim", "words"), UNRANKED)
def test_what_cannot_be_ranked_is_refused(name, embeddings, dim, words):
    with fails(ValueError, *words):
        require_embeddings(name, embeddings, dim=dim)
