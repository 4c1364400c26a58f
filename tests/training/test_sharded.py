"""Towers whose blocks' parameters are shared out to two processes compute as whole ones."""

import pytest

from tests.encoders.towers import SMALL
from tests.losses.processes import spawn
from tests.training.sharded import compare


@pytest.mark.slow
def test_every_tower_shares_out_its_blocks():
    for results in spawn(compare, processes=2):
        assert {name for name, _ in results} == SMALL.keys()
        assert max(results.values()) < 1e-4
