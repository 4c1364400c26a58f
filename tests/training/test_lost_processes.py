"""A process that stops, dies, hangs or leaves ends the others with an error, within a bound; real processes."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.training.runs import start_processes

pytestmark = pytest.mark.slow  # real processes, each of which imports all and then waits for the other

TRAINING = """
import os, signal, sys, time
import torch
from mobileclip.training import process_group, train
from tests.training.runs import Batches, new_model, share_of, training_spec
torch.set_num_threads(1)
with process_group("cpu", collective_seconds=5.0) as world:
    batches = share_of(world.rank, 4)
    def make(step):
        if step == 4 and world.rank == world.size - 1:
            {what}
        return batches(step)
    def evaluate(model, done):
        {evaluation}
        return {{"measured": float(done)}}
    spec = training_spec(6, evaluate_every_steps=3)
    train(spec, model=new_model(), batches=Batches(make=make), output=sys.argv[1], world=world, evaluate=evaluate)
"""


def started(output: Path, what: str, *, evaluation: str = "pass") -> list[subprocess.Popen[str]]:
    """Start two processes that train together, the second of which does something before step 5."""
    return start_processes(TRAINING.format(what=what, evaluation=evaluation), str(output))


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Return what each wrote to standard error."""
    try:
        return [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# The last ends a source otherwise than by an error, of which all are told with the step before.
OTHERS = ("os.kill(os.getpid(), signal.SIGSTOP)", "time.sleep(60)", "raise SystemExit('my own')")
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
LOST = [KILLED, *OTHERS]


@pytest.mark.parametrize("what", LOST)
def test_one_that_is_lost_ends_the_other_in_time_with_the_collective(tmp_path, what):
    first, second = started(tmp_path, what)
    begun = time.monotonic()
    try:
        (errors,) = ended([first])
    finally:
        second.kill()
        second.communicate()
    assert time.monotonic() - begun < 40
    assert first.returncode == 1
    assert re.search(r"TimeoutError: process 0 of 2 .*5 s.*all_gather", errors), errors[-2000:]


def test_the_first_process_that_is_killed_alone_ends_the_others(tmp_path):
    """They wait for it without the bound of a step, until its end closes the store."""
    _, second = started(tmp_path, "pass", evaluation=KILLED)
    (errors,) = ended([second])
    assert second.returncode == 1
    assert re.search(r"TimeoutError: process 1 of 2 .*5 s", errors), errors[-2000:]


def test_an_evaluation_takes_longer_than_processes_wait_for_each_other(tmp_path):
    processes = started(tmp_path, "pass", evaluation="time.sleep(10)")
    errors = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (tmp_path / "metrics.jsonl").read_text().count("measured") == 2
