"""A machine that lacks something, and workers that die: a line and a checkpoint, and the same samples to the bit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from mobileclip.data import ExampleMaker
from mobileclip.data.workers import LostProcessError
from mobileclip.training import run
from tests.data.made_samples import make_sample
from tests.descendants import descendants, kill_all
from tests.preloaded import Started, preloaded
from tests.training.program import SECONDS, TORCHRUN, finish, measuring, num_logged, run_spec, start, wait_for_steps
from tests.training.runs import ENVIRONMENT, ROOT, assert_same_to_the_bit, free_port, last_checkpoint
from tests.waiting import wait_for

NUM_STEPS = 24


MOUNTING = """
import ctypes, subprocess, sys
from tests.preloaded import python
size, *arguments = sys.argv[1:]
CLONE_NEWNS = 0x20000
assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
python(*arguments)
"""


def start_within(size: str, data: Path, output: Path, *launcher: str) -> Started:
    """Start the training program with so much shared memory, or skip the test where nothing may be mounted."""
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    program = (*launcher, "-m", "tests.training.program", data, output, NUM_STEPS, 2)
    return preloaded().start("-c", MOUNTING, size, *program, folder=ROOT, environment=ENVIRONMENT)


def fill(folder: Path) -> None:
    """Write until there is no room."""
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


@pytest.mark.parametrize(
    ("size", "launched"),
    [
        pytest.param("16k", False, marks=pytest.mark.slow),
        ("4m", False),
        pytest.param("8m", True, marks=pytest.mark.slow),
    ],
    ids=["from the start", "in the midst", "of two processes"],
)
def test_a_full_shared_memory_ends_the_run_with_a_line_and_a_checkpoint(data, whole, tmp_path, size, launched):
    """Docker gives 64 MB, which real batches fill, from the start or beside others; these are as many times smaller."""
    has_steps = size != "16k"
    launcher = (*TORCHRUN, "--master-port", str(free_port())) if launched else ()
    process = start_within(size, data, tmp_path, *launcher)
    try:
        if has_steps:
            wait_for_steps(process, tmp_path, 9)
            fill(Path(f"/proc/{process.pid}/root/dev/shm"))
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        kill_all(process)
    assert process.returncode == 1
    lines = errors.strip().splitlines()
    assert launched or len(lines) == 1
    line = next(line for line in lines if line.startswith("error: shared memory (/dev/shm) is full"))
    done = num_logged(tmp_path)
    assert (0 < done < NUM_STEPS) == has_steps
    if has_steps:
        assert line.endswith(f"the same command resumes from the saved step {done}")
        assert last_checkpoint(tmp_path).name == f"step-{done:08d}.safetensors"
    finish(data, tmp_path, num_steps=NUM_STEPS)
    assert num_logged(tmp_path) == NUM_STEPS
    if not launched:  # several processes add up in another order
        assert_same_to_the_bit(tmp_path, whole)


def workers_of(process: Started, num_workers: int) -> list[int]:
    wait_for(lambda: len(descendants(process.pid)) >= num_workers)
    return sorted(descendants(process.pid))


def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(data, whole, tmp_path):
    process = start(data, tmp_path, num_steps=NUM_STEPS, num_workers=2)
    killed = []
    try:
        for count in (2, 8, 16):
            wait_for_steps(process, tmp_path, count)
            killed.append(workers_of(process, 2)[0])
            os.kill(killed[-1], signal.SIGKILL)
            if count == 2:
                # What killed it may kill the rest: the state is saved before that is due, after step 7.
                wait_for_steps(process, tmp_path, 7)
                assert min(int(path.stem[-8:]) for path in (tmp_path / "checkpoints").glob("step-*.safetensors")) < 7
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        kill_all(process)
    assert process.returncode == 0, errors
    said = errors.strip().splitlines()
    assert len(said) == 3, errors
    for line, pid in zip(said, killed, strict=True):
        assert re.search(rf"worker [01] .*process {pid}\b.* SIGKILL", line)
    assert_same_to_the_bit(tmp_path, whole)


def test_what_kills_every_worker_ends_the_run_with_its_shard_and_a_checkpoint(data, whole, tmp_path, monkeypatch):
    """A sample that workers die of, in the third shard."""
    spec = run_spec(data, num_steps=NUM_STEPS, num_workers=2)
    original = ExampleMaker.example

    def example(self, sample, epoch):
        if sample.key == make_sample(14).key and epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, sample, epoch)

    monkeypatch.setattr(ExampleMaker, "example", example)
    with pytest.raises(LostProcessError) as ended:
        run(spec, tmp_path, device="cpu", evaluate=measuring)
    monkeypatch.undo()
    done = num_logged(tmp_path)
    assert 0 < done < 12
    assert re.fullmatch(
        r"worker [01] \(process \d+\), last at \S+/00000002\.tar, was ended by SIGKILL .*"
        rf".*; the same command resumes from the saved step {done}",
        str(ended.value),
    )
    assert last_checkpoint(tmp_path).name == f"step-{done:08d}.safetensors"
    run(spec, tmp_path, device="cpu", evaluate=measuring)
    assert_same_to_the_bit(tmp_path, whole)
