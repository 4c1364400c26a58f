import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobileclip.evaluation import classification_accuracy
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, session_of, tokenize


def test_accuracies_equal_a_sort_in_numpy():
    generator = torch.Generator().manual_seed(0)
    image, classes = torch.randn(300, 8, generator=generator), torch.randn(15, 8, generator=generator)
    labels = (torch.arange(300) * 3 + torch.arange(300) ** 2 % 7) % 15
    result = classification_accuracy(image, classes, labels, chunk_size=64)

    a, b, y = image.double().numpy(), classes.double().numpy(), labels.numpy()
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    order = np.argsort(-a @ b.T, axis=1)
    first = order[:, 0] == y
    assert result.top1 == pytest.approx(first.mean())
    assert result.top5 == pytest.approx((order[:, :5] == y[:, None]).any(axis=1).mean())
    assert result.mean_per_class == pytest.approx(np.mean([first[y == c].mean() for c in range(15)]))
    assert (result.num_images, result.num_classes) == (300, 15)


def test_mean_per_class_gives_a_rare_class_the_same_say():
    classes = torch.eye(2)
    image = torch.tensor([[1.0, 0.1]] * 9 + [[1.0, 0.2]])
    result = classification_accuracy(image, classes, torch.tensor([0] * 9 + [1]))
    assert (result.top1, result.mean_per_class) == (pytest.approx(0.9), pytest.approx(0.5))


def test_an_image_with_equal_scores_counts_as_a_guess():
    result = classification_accuracy(torch.ones(2, 4), torch.ones(4, 4), torch.tensor([0, 3]), allow_absent=True)
    assert result.top1 == pytest.approx(0.25)
    assert result.top5 == pytest.approx(1.0)


def test_class_embeddings_are_the_ensemble_of_their_templates():
    model = ColourModel()
    names, templates = list(COLOURS), ("a {} thing", "red and {}")
    found = session_of(model, batch_size=3).embed_classes(names, templates)
    for index, name in enumerate(names):
        prompts = model.encode_text(tokenize([f"a {name} thing", f"red and {name}"]), normalize=True)
        torch.testing.assert_close(found[index], F.normalize(prompts.mean(dim=0), dim=0))


def test_two_classes_may_have_one_name():
    found = session_of().embed_classes(["red", "blue", "red"])
    assert torch.equal(found[0], found[2])
    # Each of the two is found half of the time, as the public list of ImageNet's names has it.
    result = classification_accuracy(found, found, torch.arange(3))
    assert result.top1 == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_a_class_without_images_is_named():
    image, classes = torch.eye(3), torch.eye(3)
    labels = torch.tensor([0, 0, 2])
    with fails(ValueError, "cat"):
        classification_accuracy(image, classes, labels, class_names=["ant", "cat", "dog"])
    result = classification_accuracy(image, classes, labels, allow_absent=True)
    assert result.mean_per_class == pytest.approx((0.5 + 1) / 2)
    assert result.num_classes == 3


def test_mistakes_are_named():
    image, classes, session = torch.eye(3), torch.eye(3), session_of()
    with fails(ValueError, "0", "3"):
        classification_accuracy(image, classes, torch.tensor([0, 1, 3]))
    with fails(ValueError, "3"):
        classification_accuracy(image, classes, torch.tensor([0, 1]))
    for template in ("a photo", ""):
        with pytest.raises(ValueError, match=re.escape(repr(template))):
            session.embed_classes(["cat"], ["{}", template])
    with fails(ValueError):
        session.embed_classes([], ["{}"])
