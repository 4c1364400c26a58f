"""The distillation of texts against its formula, written out."""

import pytest
import torch
from torch.nn import functional as F

from mobileclip.losses import TextDistillationLoss, TextDistillationLossSpec
from tests.errors import fails


def drawn(batch=6, dim=5):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def written_out(student, teacher, weight):
    student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    count = len(student)
    cosine = sum(1 - one @ other for one, other in zip(student, teacher, strict=True)) / count
    relations = sum(
        (student[i] @ student[j] - teacher[i] @ teacher[j]) ** 2 for i in range(count) for j in range(count) if i != j
    )
    return weight * relations / max(count * (count - 1), 1), cosine


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_values_and_gradients_are_the_formulas(weight, batch):
    student, teacher = drawn(batch)
    spec = TextDistillationLossSpec(relation_weight=weight)
    assert spec.term_names == ("relations" if weight else None, "cosine")
    terms = spec.build()(student, teacher)
    relations, cosine = written_out(student, teacher, weight)
    for ours, expected in ((terms.contrastive, relations), (terms.distillation, cosine)):
        torch.testing.assert_close(ours, torch.as_tensor(expected, dtype=torch.float64))
    (ours,) = torch.autograd.grad(terms.total, student, retain_graph=True)
    (expected,) = torch.autograd.grad(relations + cosine, student)
    torch.testing.assert_close(ours, expected)


def test_narrow_and_longer_embeddings_give_the_same_and_another_width_is_refused():
    student, teacher = (one.detach().bfloat16() for one in drawn())
    loss = TextDistillationLoss(TextDistillationLossSpec(relation_weight=2.0))
    total = loss(student, teacher).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, loss(3 * student.float(), 5 * teacher.float()).total)
    assert TextDistillationLoss().spec == TextDistillationLossSpec()
    with fails(ValueError, "student", "teacher"):
        loss(student, teacher[:, :4])
