"""Every long command is ended by real signals to all its processes, and says so without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.program import are_gone, descendants, kill_all

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"

COMMANDS = {
    "reinforce": (
        [RECIPES / "reinforce_dfndr2b.py", "--tiny", "--num-workers", "2"],
        "outputs/DFNDR-2B-tiny/.staging/*",
    ),
    "finetune": ([RECIPES / "finetune.py", "--tiny"], "outputs/tiny/finetuning/pretraining/metrics.jsonl"),
    "evaluate": ([RECIPES / "evaluate.py", "--tiny"], "outputs/evaluate-tiny/made/wds_scenes_test/test/nshards.txt"),
    "train": ([RECIPES / "train_vit_b16_12m.py", "plain", "--tiny"], "outputs/tiny/reinforced/*"),
    "embed": (["-m", "mobileclip.cli", "embed", "pictures", "-m", "mobileclip_s0", "-o", "all.npz"], "pictures/0.jpg"),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_command_and_all_its_processes(name, number, tmp_path):
    command, sign = COMMANDS[name]
    (tmp_path / "pictures").mkdir()
    for index in range(3000):
        (tmp_path / "pictures" / f"{index}.jpg").write_bytes(
            (ROOT / "tests/golden/augment/images/chelsea.png").read_bytes()
        )
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(sign)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(8 if name == "embed" else 0.5)
        assert process.poll() is None, process.communicate()[1][-2000:]
        below = descendants(process.pid)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        kill_all(process)
    assert process.returncode == 128 + number, errors[-2000:]
    assert "Traceback" not in errors, errors[-2000:]
    assert f"interrupted by {number.name}; " in errors
    assert are_gone(below)
