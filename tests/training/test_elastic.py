"""Training that goes on with other numbers of processes and workers, whatever ended it, sees the same samples."""

import pytest

from tests.training.elastic import trial


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["epoch", "endless"])
def test_ends_change_no_step(tmp_path, sampling):
    trial(tmp_path, num_kills=5, num_steps=60, seed=2, sampling=sampling)
