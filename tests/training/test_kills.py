"""Training that is ended by the system at random moments ends as one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survives import Moment, Program, survives
from tests.training.program import TORCHRUN, num_logged, write_data

PLAIN = """
import sys
from pathlib import Path
import torch
from mobileclip.training import process_group, train
from tests.training.runs import Batches, new_model, share_of, training_spec
torch.set_num_threads(1)
with process_group("cpu") as world:
    batches = Batches(make=share_of(world.rank, world.size))
    spec = training_spec(int(sys.argv[1]))
    train(spec, model=new_model(), batches=batches, output=Path("trained"), world=world)
"""
LAUNCHED = (*TORCHRUN, "--master-port", "{port}")
SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT")


def training(num_steps: int, *line: str, prepare) -> Program:
    """A program whose log, last checkpoint and model are compared; one that was asked to stop has saved others too."""
    return Program(
        line=line,
        prepare=prepare,
        progress=lambda folder: num_logged(folder / "trained"),
        most=num_steps - 1,
        counted=rf"^trained/(metrics\.jsonl|model\.safetensors|checkpoints/.*{num_steps:08d}\.safetensors)$|part|tmp",
        keeps=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), LAUNCHED], ids=["1", "2"])
def test_kills_change_nothing(tmp_path, launcher):
    program = training(
        100,
        *(*launcher, "-m", "tests.training.program", "data", "trained", "100", "1"),
        prepare=lambda folder: write_data(folder / "data"),
    )
    survives(program, Moment.drawn(5, 1, more=(0, 39), seconds=0.3, names=SIGNALS), tmp_path)


def write_program(folder: Path) -> None:
    (folder / "run.py").write_text(PLAIN, encoding="utf-8")


@pytest.mark.slow
def test_killed_twenty_times_it_still_gives_the_same(tmp_path):
    program = training(600, "run.py", "600", prepare=write_program)
    survives(program, Moment.drawn(20, 0, more=(1, 20), seconds=0.4), tmp_path)


@pytest.mark.slow
def test_two_processes_killed_by_the_system_resume_to_the_bit(tmp_path):
    program = training(200, *LAUNCHED, "run.py", "200", prepare=write_program)
    survives(program, [Moment(more=21)] * 3, tmp_path)
