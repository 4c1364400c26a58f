"""What tests draw is the same in every run, whichever of them ran before."""

import random

import numpy as np
import pytest
import torch

from tests.conftest import SEED, seed_all


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - as tests do


AT_IMPORT = draw()


@pytest.fixture(scope="module", params=["a", "b"])
def shared(request):
    return draw()


@pytest.fixture(scope="module")
def shared_and_late():
    return draw()


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_test_draws_what_it_draws_alone_whatever_it_shares(request, shared, num_before):
    seed_all(SEED)
    alone = [draw() for _ in range(num_before + 1)]
    seed_all(SEED)
    drawn = [draw() for _ in range(num_before)]
    late = request.getfixturevalue("shared_and_late")
    assert [*drawn, draw()] == alone
    assert len({shared, late, AT_IMPORT, alone[0]}) == 4


FIRST = []


@pytest.mark.parametrize("again", [False, True])
def test_every_test_begins_with_the_same_numbers(again):
    FIRST.append(draw())
    assert set(FIRST) == {FIRST[0]}
    seed_all(SEED)
    assert draw() == FIRST[0]
