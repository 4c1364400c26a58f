"""Models whose parameters are shared out to two processes compute as whole ones."""

import pytest
import torch

from tests.encoders.towers import SMALL
from tests.losses.processes import spawn
from tests.training.sharded import compare, step_of_dual_encoders


@pytest.mark.slow
def test_every_tower_shares_out_its_blocks():
    for results in spawn(compare, processes=2):
        assert {name for name, _ in results} == SMALL.keys()
        assert max(results.values()) < 1e-4


def test_a_dual_encoder_shares_out_all_of_its_parameters():
    for found in spawn(step_of_dual_encoders, processes=2):
        parts, whole = found["parts"], found["whole"]
        assert parts.keys() == whole.keys() > {"logit_scale", "gradient of logit_scale", "scale"}
        assert whole["gradient of logit_scale"].abs() > 0
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6, msg=name)
