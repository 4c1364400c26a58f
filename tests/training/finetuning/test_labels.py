from itertools import islice

import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from mobileclip.training.finetuning import labelled_contrastive, with_labels
from tests.errors import fails
from tests.training.runs import batch_of


def reference(image, text, labels, scale):
    """Both cross-entropies with the targets shared among a class, less the entropy of the targets; in float64."""
    logits = scale * image @ text.T
    same = (labels[:, None] == labels).double()
    target = same / same.sum(1, keepdim=True)
    entropy = -(target * target.clamp(min=1e-300).log()).sum(1).mean()
    rows, columns = (-(target * one.log_softmax(1)).sum(1).mean() for one in (logits, logits.T))
    return (rows + columns) / 2 - entropy


@settings(max_examples=25)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_value_and_gradients_are_those_of_shared_targets(labels, seed):
    labels = torch.tensor(labels)
    draws = torch.randn(2, len(labels), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found, expected = draws.clone().requires_grad_(), draws.clone().requires_grad_()
    image, text = F.normalize(found, dim=2)
    codes = F.one_hot(labels, 5).float()
    loss = labelled_contrastive(5).build()
    total = loss(image=image, text=text, logit_scale=7.0, teacher_image=codes, teacher_text=codes).total
    value = reference(*F.normalize(expected, dim=2), labels, 7.0)
    torch.testing.assert_close(total, value, rtol=1e-6, atol=1e-9, check_dtype=False)
    total.backward()
    value.backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-8)


class Batches:
    """Eight keys a step, `STEP-0` to `STEP-7`."""

    num_lost = 3

    def stream(self, position):
        for step in range(position, 100):
            yield batch_of(step)

    def position(self, num_batches):
        return num_batches


def test_batches_get_the_labels_of_their_keys():
    labels = {f"{step}-{index}": (step + index) % 3 for step in range(9) for index in range(8)}
    batches = with_labels(Batches(), labels, num_classes=3)
    assert batches.position(2) == 2
    assert batches.num_lost == 3, "for which a run saves its state"
    for step, batch in zip(range(2, 5), islice(batches.stream(2), 3), strict=True):
        plain = batch_of(step)
        assert torch.equal(batch.image, plain.image)
        assert torch.equal(batch.text, plain.text)
        expected = F.one_hot(torch.tensor([(step + index) % 3 for index in range(8)]), 3)
        for codes in (batch.teacher_image, batch.teacher_text):
            torch.testing.assert_close(codes, expected, check_dtype=False)


def test_mistakes_are_named():
    with fails(ValueError, "1"):
        labelled_contrastive(1)
    for labels, num_classes, *words in (
        ({"0-0": 0}, 2, "0-1", "2"),
        ({f"0-{index}": index for index in range(8)}, 7, "0-7", "7"),
    ):
        with fails(ValueError, *words):
            next(with_labels(Batches(), labels, num_classes=num_classes).stream(0))
