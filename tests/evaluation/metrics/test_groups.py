"""The worst group, macro F1 and sets of answers, against their definitions, counted by hand or one by one."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from mobileclip.evaluation import association_score, group_accuracy, macro_f1
from mobileclip.evaluation.metrics import macro_f1_values
from tests.errors import fails


def test_the_worst_group_by_hand():
    hits, groups = torch.tensor([1, 0, 1, 1, 0, 0, 1]), torch.tensor([0, 0, 0, 2, 2, 3, 5])
    result = group_accuracy(hits, groups)
    assert result.groups == pytest.approx({0: 2 / 3, 2: 0.5, 3: 0.0, 5: 1.0})
    assert result.counts == {0: 3, 2: 2, 3: 1, 5: 1}
    assert (result.worst, result.average) == pytest.approx((0.0, 4 / 7))
    without = group_accuracy(hits, groups, ignore=[3])
    assert (without.worst, without.average) == pytest.approx((0.5, 4 / 7))


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1))
def test_the_worst_group_one_by_one(images):
    hits, groups = (torch.tensor(values) for values in zip(*images, strict=True))
    result = group_accuracy(hits / 8, groups)
    for group in {group for _, group in images}:
        own = [Fraction(hit, 8) for hit, other in images if other == group]
        assert result.groups[group] == pytest.approx(float(sum(own) / len(own)))
    assert result.worst == min(result.groups.values())


def test_macro_f1_by_hand():
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 3, 3])
    # Class 0: precision 1, recall 2/3; class 1: 1/2 and 1/2; class 2 is never found; class 3 has no image.
    assert macro_f1(predicted, labels) == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_macro_f1_one_by_one(images):
    scores = []
    for one in {label for _, label in images}:
        right = sum(predicted == label == one for predicted, label in images)
        said, there = (sum(image[side] == one for image in images) for side in (0, 1))
        scores.append(Fraction(2 * right, said + there))
    predicted, labels = (torch.tensor(values) for values in zip(*images, strict=True))
    assert macro_f1(predicted, labels) == pytest.approx(float(sum(scores) / len(scores)))
    assert float(macro_f1_values(predicted, labels).mean()) == pytest.approx(macro_f1(predicted, labels))


def test_values_say_what_an_image_changes():
    """An image that weighs a thousandth more, one after another."""
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 2, 0]), torch.tensor([0, 0, 1, 1, 3, 3, 2])
    found, f1, often = macro_f1_values(predicted, labels), macro_f1(predicted, labels), 1000
    for image in range(len(labels)):
        more = (torch.cat([one.repeat(often), one[image : image + 1]]) for one in (predicted, labels))
        change = (macro_f1(*more) - f1) * often * len(labels)
        assert change == pytest.approx(float(found[image]) - f1, abs=2e-3)


ASSOCIATIONS = [
    ([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0], 1.0),
    ([0.9, 0.1, 0.8, 0.2], [1, 1, 0, 0], 1 / 3),
    ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),
    ([0.1, 0.2, 0.8, 0.9], [1, 1, 1, 1], 1.0),
]


@pytest.mark.parametrize(("similarity", "associated", "score"), ASSOCIATIONS)
def test_associations_by_hand(similarity, associated, score):
    assert association_score(torch.tensor(similarity), torch.tensor(associated).bool()) == pytest.approx(score)


MISTAKES = [
    (group_accuracy, torch.ones(3), torch.zeros(2, dtype=torch.long), ["(3,)", "torch.int64", "(2,)"]),
    (group_accuracy, torch.ones(3), torch.zeros(3), []),
    (group_accuracy, torch.ones(2), torch.tensor([0, -1]), ["-1"]),
    (group_accuracy, torch.ones(0), torch.zeros(0, dtype=torch.long), []),
    (lambda *values: group_accuracy(*values, ignore=[4]), torch.ones(1), torch.tensor([4]), []),
    (macro_f1, torch.zeros(2), torch.zeros(3), ["(2,)", "(3,)"]),
    (macro_f1, torch.zeros(0), torch.zeros(0), []),
    (association_score, torch.zeros(3), torch.zeros(3).bool(), ["(3,)", "0"]),
    (association_score, torch.zeros(2), torch.ones(3).bool(), []),
]


@pytest.mark.parametrize(("function", "first", "second", "words"), MISTAKES)
def test_mistakes(function, first, second, words):
    with fails(ValueError, *words):
        function(first, second)
