"""Training that is killed again and again, at random moments, and finished: compared with a run that nobody touched.

`python -m tests.training.kills --processes 2 --kills 20` prints what became of it, and fails where a byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors import safe_open

from mobileclip.terminal import say
from mobileclip.training import read_metrics
from tests.descendants import descendants, kill_all
from tests.training.program import num_logged, start, write_data
from tests.training.test_loop import without_times

KILLS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT")
"""Which signals are sent, as often as they stand here."""


def trial(folder: Path, *, num_processes: int, num_kills: int, num_steps: int, seed: int) -> str:
    """End a training so often, finish it, and return what happened.

    Args:
        folder: where it works.
        num_processes: 1, or 2 that `torchrun` starts.
        num_kills: runs that are ended; each gets time for some steps, or for none.
        num_steps: of the training.
        seed: of the moments and the signals.

    Raises:
        AssertionError: if weights or metrics differ by a bit from those of an undisturbed run, a process is left
            behind, or one that was asked to stop did not.
    """
    rng = random.Random(seed)
    data, killed, whole = write_data(folder / "data"), folder / "killed", folder / "whole"
    ports = iter(range(26_000 + os.getpid() % 1_000, 60_000)) if num_processes > 1 else None
    sent: Counter[str] = Counter()
    started = time.monotonic()

    def begin(output: Path):
        port = 0 if ports is None else next(ports)
        return start(data, output, num_steps=num_steps, num_workers=1, port=port)

    while sum(sent.values()) < num_kills:
        process, before, name = begin(killed), num_logged(killed), rng.choice(KILLS)
        target = before + rng.randrange(0, max(2, 2 * num_steps // num_kills))
        while process.poll() is None and num_logged(killed) < min(target, num_steps - 1):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        below = descendants(process.pid)
        if process.poll() is not None:
            break
        if name == "SIGKILL":
            kill_all(process)
        else:
            os.killpg(process.pid, signal.Signals[name])
            process.communicate(timeout=120)
        sent[name] += 1
        deadline = time.monotonic() + 30
        while (left := [pid for pid in below if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"processes {left} outlived {name}"
    for output in (killed, whole):
        process = begin(output)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
    found, expected = (without_times(read_metrics(output / "metrics.jsonl")) for output in (killed, whole))
    assert found == expected, "the metrics differ"
    weights, right = (_content(output / "model.safetensors") for output in (killed, whole))
    assert weights == right, "the weights differ"
    said = ", ".join(f"{count} {name}" for name, count in sorted(sent.items()))
    return (
        f"{num_processes} process{'es' * (num_processes > 1)}, {num_steps} steps, seed {seed}: "
        f"ended {sum(sent.values())} times ({said}); weights and metrics are those of an undisturbed run to the bit; "
        f"{time.monotonic() - started:.0f} s"
    )


def _content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return a file's metadata, whose order in it is no one's choice, and the bytes of every tensor."""
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 - no mapping
        return file.metadata(), tensors


def main() -> None:
    """Run the trial of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        say(
            trial(
                Path(folder),
                num_processes=chosen.processes,
                num_kills=chosen.kills,
                num_steps=chosen.steps,
                seed=chosen.seed,
            )
        )


if __name__ == "__main__":
    sys.exit(main())
