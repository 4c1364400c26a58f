"""Processes that stop, die, hang or end with an error are named by the others, within a bound; real processes."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from mobileclip.training.heartbeats import Pulse
from tests.errors import fails
from tests.training.runs import start_processes

HOST = re.escape(platform.node())
SILENT_IN_STEP_42 = rf"process 1 of 2 \({HOST}\) was last heard \d s ago, in step 42"
# What it said last, up to half a second before.
_SILENT = r"was last heard \d+ s ago, [a-z ]+ step [345]"

TRAINING = """
import os, signal, sys, time
import torch
from mobileclip.training import connected, train
from tests.training.runs import Batches, new_model, share_of, training_spec
torch.set_num_threads(1)
with connected("cpu", collective_seconds=5.0) as world:
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


def started(output: Path, what: str, *, evaluation: str = "pass", size: int = 2) -> list[subprocess.Popen[str]]:
    """Start processes that train together, the last of which does something before step 5."""
    return start_processes(TRAINING.format(what=what, evaluation=evaluation), str(output), size=size)


def ended(processes: list[subprocess.Popen[str]], seconds: float = 60.0) -> list[str]:
    """Return what each wrote to standard error."""
    try:
        return [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", _SILENT),
        ("os.kill(os.getpid(), signal.SIGSTOP)", _SILENT),
        ("time.sleep(60)", r"lives and has been waiting for the batch of step 5 for \d+ s"),
        # What ends a source otherwise than by an error, of which all are told with the step before.
        ("raise SystemExit('my own')", r"ended [a-z ]+ step 4: SystemExit: my own"),
    ],
    ids=["killed", "stopped", "hangs", "left"],
)
def test_the_one_that_is_missing_is_named_by_all_others(tmp_path, what, said):
    processes = started(tmp_path, what, size=3)
    begun = time.monotonic()
    try:
        others = ended(processes[:2])
    finally:
        processes[2].kill()
        processes[2].communicate()
    assert time.monotonic() - begun < 40
    for rank, errors in enumerate(others):
        assert processes[rank].returncode == 1
        assert re.search(
            rf"TimeoutError: process {rank} of 3 waited for the others in vain \(at most 5 s\): "
            rf"process 2 of 3 \({HOST}\) {said}\. Start all of them again",
            errors,
        ), errors[-2000:]


@pytest.mark.slow
def test_one_that_hangs_ends_itself(tmp_path):
    """As NCCL would let it wait: what started it would not end it before."""
    processes = started(tmp_path, "time.sleep(600)")
    _, errors = ended(processes)
    assert processes[1].returncode == 1
    assert re.search(
        rf"process 1 of 2 \({HOST}\) ends, waiting for the batch of step 5: nothing came for \d+ s\. Of the others, "
        "process 0 of 2, which the others meet at, does not answer any more",
        errors,
    )


@pytest.mark.slow
def test_an_evaluation_takes_longer_than_processes_wait_for_each_other(tmp_path):
    processes = started(tmp_path, "pass", evaluation="time.sleep(10)")
    errors = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    log = (tmp_path / "metrics.jsonl").read_text()
    assert log.count("measured") == 2


@pytest.fixture
def two():
    """Two processes' pulses in one. They say `bounded=False`: one that takes too long ends its process, this one."""
    store = HashStore()
    return [Pulse(store, rank=rank, size=2, seconds=0.5) for rank in range(2)]


def test_one_that_gives_no_signs_is_named_with_what_it_did(two):
    first, second = two
    with first.heartbeats():
        assert first.missing() == "process 1 of 2 was not heard at all"
        second.tell("in step 42", 41.5, bounded=False)
        with second.heartbeats():
            first.tell("waiting for the others in step 42", 41.8, bounded=False)
            time.sleep(0.1)
            assert re.fullmatch(rf"process 1 of 2 \({HOST}\) lives and has been in step 42 for \d s", first.missing())
            second._heart.stop()
            # A sign may be on its way.
            silent = (re.fullmatch(SILENT_IN_STEP_42, first.missing()) for _ in range(10))
            assert any(silent)
        assert first.missing() == "all others wait too, or have ended"


def test_an_error_is_told_and_waiting_in_vain_is_not_one(two):
    first, second = two
    with first.heartbeats():
        with pytest.raises(OSError, match="no room"), second.heartbeats():
            raise OSError("no room")
        assert first.missing() == f"process 1 of 2 ({platform.node()}) ended before the first step: OSError: no room"


def test_a_turn_is_waited_for_as_long_as_the_first_one_gives_signs(two):
    first, second = two
    with first.heartbeats():
        started_at = time.monotonic()
        first._heart.stop()
        with fails(RuntimeError, "0.5"):
            second.await_barrier()
        assert time.monotonic() - started_at >= 0.5
    first.open_barrier()
    second.await_barrier()
    with fails(RuntimeError):
        second.await_barrier()
