import numpy as np
import pytest
import torch

from mobileclip.evaluation import caption_recall, retrieval_recall
from mobileclip.evaluation.metrics import caption_hits
from tests.errors import fails


def brute_force(query, answer, query_ids, answer_ids, k):
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    answer = answer / np.linalg.norm(answer, axis=1, keepdims=True)
    hits = []
    for row, wanted in zip(query, query_ids, strict=True):
        best = np.argsort(-(answer @ row))[:k]
        hits.append(any(answer_ids[index] == wanted for index in best))
    return float(np.mean(hits))


def test_recall_equals_brute_force_with_several_captions_an_image():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(40, 6, generator=generator)
    image_ids = torch.arange(40) // 2
    text_ids = torch.arange(70) % 20
    text = image[2 * text_ids] + 1.2 * torch.randn(70, 6, generator=generator)
    result = retrieval_recall(image, text, image_ids=image_ids, text_ids=text_ids, chunk_size=16)
    a, b = image.double().numpy(), text.double().numpy()
    for k, name in ((1, "at1"), (5, "at5"), (10, "at10")):
        there = brute_force(a, b, image_ids.numpy(), text_ids.numpy(), k)
        back = brute_force(b, a, text_ids.numpy(), image_ids.numpy(), k)
        assert 0 < there < 1
        assert getattr(result.image_to_text, name) == pytest.approx(there)
        assert getattr(result.text_to_image, name) == pytest.approx(back)
    assert (result.num_images, result.num_texts) == (40, 70)


def test_a_collapsed_model_gets_what_guessing_gets():
    result = retrieval_recall(
        torch.ones(50, 4), torch.ones(100, 4), image_ids=torch.arange(50), text_ids=torch.arange(50).repeat(2)
    )
    assert result.text_to_image.at1 == pytest.approx(1 / 50)
    assert result.text_to_image.at10 == pytest.approx(10 / 50)
    assert result.image_to_text.at5 == pytest.approx(1 - (98 * 97 * 96 * 95 * 94) / (100 * 99 * 98 * 97 * 96))


def test_mistakes_are_named():
    image, text = torch.eye(3), torch.eye(3)
    with fails(ValueError, "text", "3", "7", "image", "0"):
        retrieval_recall(image, torch.ones(4, 3), image_ids=torch.arange(3), text_ids=torch.tensor([0, 1, 2, 7]))
    with fails(ValueError, "image", "2", "text"):
        retrieval_recall(image, text, image_ids=torch.arange(3), text_ids=torch.tensor([0, 1, 1]))
    with fails(ValueError, "3", "image"):
        retrieval_recall(image, text, image_ids=torch.arange(2), text_ids=torch.arange(3))
    with fails(ValueError, "image", "1", "text"):
        caption_recall(image, text[:2], [1, 0, 1])


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [2, 5, 1, 3]])
def test_the_mean_over_images_is_the_mean_recall(counts):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(sum(counts), 4, generator=generator)
    image = torch.randn(len(counts), 4, generator=generator) + text[[sum(counts[:i]) for i in range(len(counts))]]
    recall = caption_recall(image, text, counts)
    hits = caption_hits(image, text, counts)
    assert hits.mean().item() == pytest.approx((recall.image_to_text.at1 + recall.text_to_image.at1) / 2)
    assert 0 < hits.mean() < 1
