"""Training that is ended by the system at random moments ends as one that is not."""

from __future__ import annotations

import pytest

from tests.survives import Moment, Program, survives
from tests.training.program import TORCHRUN, num_logged, write_data


@pytest.mark.slow
def test_kills_of_two_processes_change_nothing(tmp_path):
    """The log, the last checkpoint and the model; one that was asked to stop has saved others too."""
    program = Program(
        line=(*TORCHRUN, "--master-port", "{port}", "-m", "tests.training.program", "data", "trained", "100", "1"),
        prepare=lambda folder: write_data(folder / "data"),
        progress=lambda folder: num_logged(folder / "trained"),
        most=99,
        counted=r"^trained/(metrics\.jsonl|model\.safetensors|checkpoints/.*00000100\.safetensors)$|part|tmp",
        keeps=False,
    )
    names = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT")
    survives(program, Moment.drawn(8, 1, more=(0, 39), seconds=0.3, names=names), tmp_path)
