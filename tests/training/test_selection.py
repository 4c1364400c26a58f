"""Steps learn from the pairs that the student finds harder than its teachers do, chosen chunk by chunk."""

from __future__ import annotations

import copy
from contextlib import suppress

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
from mobileclip.reparam import evaluating
from mobileclip.training import ImageTextObjective, Learnability, PairLosses, SelectionSpec, World, choose_pairs
from tests.errors import fails
from tests.training.runs import TEACHER_DIMS, batch_of, new_model, training_spec

HALF = SelectionSpec(share=0.5, num_chunks=2)
NUM_PAIRS, DIM = 12, 5


def embeddings(seed, count=NUM_PAIRS, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, dim, generator=generator).unbind()


def logits_of(image, text, scale):
    return (scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).mT).double()


def loss_in(logits, places, pair):
    """The contrastive loss of one pair in a batch of some."""
    own = places.index(pair)
    part = logits[places][:, places]
    return float((part[own].logsumexp(0) + part[:, own].logsumexp(0)) / 2 - part[own, own])


def learnability():
    teachers = [PairLosses(*embeddings(seed), 3.0) for seed in (2, 3)]
    return Learnability(student=PairLosses(*embeddings(1), 2.0), teachers=teachers)


def plainly_chosen(spec, draws):
    """The algorithm as it reads, with every loss computed from the matrices."""
    student = logits_of(*embeddings(1), 2.0)
    teachers = [logits_of(*embeddings(seed), 3.0) for seed in (2, 3)]
    chosen: list[int] = []
    for chunk, size in enumerate(spec.sizes(NUM_PAIRS)):
        scores = {}
        for pair in set(range(NUM_PAIRS)) - set(chosen):
            beside = [*chosen, pair] if chosen else list(range(NUM_PAIRS))
            reference = sum(loss_in(one, beside, pair) for one in teachers) / 2
            noise = -torch.log(-torch.log(draws[chunk, pair]))
            scores[pair] = loss_in(student, beside, pair) - reference + float(noise)
        chosen += sorted(scores, key=scores.get, reverse=True)[:size]
    return sorted(chosen)


@pytest.mark.parametrize("spec", [HALF, SelectionSpec(share=0.25), SelectionSpec(share=0.9, num_chunks=3)])
def test_pairs_are_chosen_as_the_algorithm_says(spec):
    found = set()
    for seed in range(6):
        draws = torch.rand(16, NUM_PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        places = choose_pairs(spec, [learnability()], draws).tolist()
        assert places == plainly_chosen(spec, draws)
        assert len(set(places)) == int(spec.share * NUM_PAIRS)
        found.add(tuple(places))
    assert len(found) > 1


def objective_of(spec=HALF, model=None, **changes):
    model = new_model() if model is None else model
    return ImageTextObjective(training_spec(9, selection=spec, **changes), model=model, world=World())


def test_the_loss_is_that_of_the_pairs_that_are_chosen():
    model = new_model()
    chosen, whole = objective_of(model=copy.deepcopy(model)), objective_of(SelectionSpec(), copy.deepcopy(model))
    batch = batch_of(0)
    torch.manual_seed(3)
    part = chosen._learnable(batch)
    torch.manual_seed(3)
    terms = chosen(batch)
    assert len(part) == 4
    assert set(part.keys) < set(batch.keys)
    assert torch.equal(part.text, batch.text[[batch.keys.index(key) for key in part.keys]])
    expected = whole(part)
    torch.testing.assert_close(terms, expected)
    # What was looked at has left no trace in the norms.
    torch.testing.assert_close(dict(chosen.model.named_buffers()), dict(whole.model.named_buffers()))


def test_every_part_keeps_its_own_mode():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2))).train()
    model[2].eval()
    with suppress(KeyError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert [part.training for part in model.modules()] == [True, True, True, False, False]


def test_chunks_are_as_even_as_they_can_be():
    sizes = {(0.3, 100): (2,) * 14 + (1,) * 2, (0.3, 10): (1, 1, 1), (0.25, 8): (1, 1)}
    assert all(SelectionSpec(share=share).sizes(count) == each for (share, count), each in sizes.items())


def test_mistakes():
    with fails(ValueError, "1", "8"):
        SelectionSpec(share=0.2).sizes(8)
    with fails(ValueError, "share"):
        SelectionSpec(share=1.1)
    with fails(ValueError, "teacher_dims"):
        training_spec(8, loss=ContrastiveLossSpec(), selection=HALF)
    bare = attrs.evolve(batch_of(0), teacher_image=None, teacher_text=None, teacher_syn_text=None)
    with fails(ValueError, "embeddings"):
        objective_of(loss=ReinforcedLossSpec(teacher_dims=TEACHER_DIMS, distill_weight=0))(bare)
