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

    a, b, y = image.double().numpy(), F.normalize(classes.double(), dim=1).numpy(), labels.numpy()
    order = np.argsort(-a @ b.T, axis=1)
    first = order[:, 0] == y
    assert result.top1 == pytest.approx(first.mean())
    assert result.top5 == pytest.approx((order[:, :5] == y[:, None]).any(axis=1).mean())
    assert result.mean_per_class == pytest.approx(np.mean([first[y == c].mean() for c in range(15)]))
    assert (result.num_images, result.num_classes) == (300, 15)


def test_a_rare_class_has_the_same_say_and_an_image_with_equal_scores_counts_as_a_guess():
    image = torch.tensor([[1.0, 0.1]] * 9 + [[1.0, 0.2]])
    result = classification_accuracy(image, torch.eye(2), torch.tensor([0] * 9 + [1]))
    assert (result.top1, result.mean_per_class) == pytest.approx((0.9, 0.5))
    result = classification_accuracy(torch.ones(2, 4), torch.ones(4, 4), torch.tensor([0, 3]), allow_absent=True)
    assert (result.top1, result.top5) == pytest.approx((0.25, 1.0))


def test_class_embeddings_are_the_ensemble_of_their_templates():
    model, templates = ColourModel(), ("a {} thing", "red and {}")
    found = session_of(model, batch_size=3).embed_classes(list(COLOURS), templates)
    for index, name in enumerate(COLOURS):
        prompts = model.encode_text(tokenize([one.format(name) for one in templates]), normalize=True)
        torch.testing.assert_close(found[index], F.normalize(prompts.mean(dim=0), dim=0))


def test_two_classes_may_have_one_name():
    found = session_of().embed_classes(["red", "blue", "red"])
    assert torch.equal(found[0], found[2])
    # Each of the two is found half of the time, as the public list of ImageNet's names has it.
    assert classification_accuracy(found, found, torch.arange(3)).top1 == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_mistakes_are_named():
    eye, labels = torch.eye(3), torch.tensor([0, 0, 2])
    with fails(ValueError, "cat"):
        classification_accuracy(eye, eye, labels, class_names=["ant", "cat", "dog"])
    result = classification_accuracy(eye, eye, labels, allow_absent=True)
    assert (result.mean_per_class, result.num_classes) == pytest.approx(((0.5 + 1) / 2, 3))
    for wrong, words in (([0, 1, 3], ["0", "3"]), ([0, 1], ["3"])):
        with fails(ValueError, *words):
            classification_accuracy(eye, eye, torch.tensor(wrong))
    for names, templates, word in ((["cat"], ["{}", "a photo"], "'a photo'"), (["cat"], [""], "''"), ([], ["{}"], "")):
        with fails(ValueError, word):
            session_of().embed_classes(names, templates)
