"""Models whose parameters are shared out to two processes compute as whole ones."""

import pytest
import torch

from tests.encoders.towers import SMALL
from tests.preloaded import preloaded
from tests.training.runs import ENVIRONMENT, ROOT


def of_two(function, folder):
    """Return what two processes save that do a function of `sharded.py`."""
    code = (
        "import sys\nfrom tests.training import sharded\ngetattr(sharded, sys.argv[1])(int(sys.argv[2]), sys.argv[3])"
    )
    called = [("-c", code, function, rank, folder) for rank in range(2)]
    processes = [preloaded().start(*one, folder=ROOT, environment=ENVIRONMENT) for one in called]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_every_tower_shares_out_its_blocks(tmp_path):
    for results in of_two("compare", tmp_path):
        assert {name for name, _ in results} == SMALL.keys()
        assert max(results.values()) < 1e-4


def test_a_dual_encoder_shares_out_all_of_its_parameters(tmp_path):
    for found in of_two("step_of_dual_encoders", tmp_path):
        parts, whole = found["parts"], found["whole"]
        assert parts.keys() == whole.keys() > {"logit_scale", "gradient of logit_scale", "scale"}
        assert whole["gradient of logit_scale"].abs() > 0
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6, msg=name)
