"""Training that is killed by the system at random moments ends as one that is not."""

from __future__ import annotations

import pytest

from tests.training.kills import trial


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_kills_change_nothing(tmp_path, num_processes):
    said = trial(tmp_path, num_processes=num_processes, num_kills=5, num_steps=100, seed=1)
    assert "ended 5 times" in said
