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
    rows = -(target * logits.log_softmax(1)).sum(1).mean()
    columns = -(target * logits.T.log_softmax(1)).sum(1).mean()
    return (rows + columns) / 2 - entropy


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_value_and_gradients_are_those_of_shared_targets(labels, seed):
    labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(len(labels), 6, dtype=torch.float64, generator=generator) for _ in range(2))
    found, expected = ([one.clone().requires_grad_() for one in (image, text)] for _ in range(2))
    codes = F.one_hot(labels, 5).float()
    terms = labelled_contrastive(5).build()(
        image=F.normalize(found[0], dim=1),
        text=F.normalize(found[1], dim=1),
        logit_scale=7.0,
        teacher_image=codes,
        teacher_text=codes,
    )
    value = reference(F.normalize(expected[0], dim=1), F.normalize(expected[1], dim=1), labels, 7.0)
    torch.testing.assert_close(terms.total, value, rtol=1e-6, atol=1e-9, check_dtype=False)
    terms.total.backward()
    value.backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)


class Batches:
    """Eight keys a step, `STEP-0` to `STEP-7`."""

    def stream(self, position):
        for step in range(position, 100):
            yield batch_of(step)

    def position(self, num_batches):
        return num_batches

    num_lost = 3


def test_batches_get_the_labels_of_their_keys():
    labels = {f"{step}-{index}": (step + index) % 3 for step in range(9) for index in range(8)}
    batches = with_labels(Batches(), labels, num_classes=3)
    assert batches.position(2) == 2
    assert batches.num_lost == 3, "for which a run saves its state"
    for step, batch in zip(range(2, 5), islice(batches.stream(2), 3), strict=True):
        plain = batch_of(step)
        assert torch.equal(batch.image, plain.image)
        assert torch.equal(batch.text, plain.text)
        expected = [(step + index) % 3 for index in range(8)]
        assert batch.teacher_image.argmax(1).tolist() == batch.teacher_text.argmax(1).tolist() == expected
        assert batch.teacher_image.sum(1).tolist() == [1] * 8


def test_mistakes_are_named():
    with fails(ValueError, "1"):
        labelled_contrastive(1)
    batches = with_labels(Batches(), {"0-0": 0}, num_classes=2)
    with fails(ValueError, "0-1", "2"):
        next(batches.stream(0))
    batches = with_labels(Batches(), {f"0-{index}": index for index in range(8)}, num_classes=7)
    with fails(ValueError, "0-7", "7"):
        next(batches.stream(0))
