"""What was measured, where, and the file that keeps it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch

from benchmarks.cost_reinforce import Rates
from benchmarks.loss import GIB, Measurement
from benchmarks.reinforce import Round
from benchmarks.train import Comparison
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import atomic_write


@attrs.frozen(kw_only=True)
class PytestCounts:
    """What came of the tests that need a CUDA device.

    Args:
        num_passed: tests that passed.
        num_skipped: tests whose packages or devices are not there.
        failed: names of the others.
    """

    num_passed: int
    num_skipped: int
    failed: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Job:
    """The rounds of a whole reinforcement.

    Args:
        num_views: augmented images of a round.
        rounds: what each took.
    """

    num_views: int
    rounds: tuple[Round, ...]


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of one part: one of its results, or why there is none.

    Args:
        seconds: how long the part took, its start included.
        error: why there is no result; None where there is one.
        tests: of the part that runs tests.
        training: of parts that compare training steps.
        loss: of parts that measure the loss.
        rates: of the part that measures teachers and captioner.
        job: of the part that reinforces pictures.
    """

    seconds: float = 0.0
    error: str | None = None
    tests: PytestCounts | None = None
    training: Comparison | None = None
    loss: Measurement | None = None
    rates: Rates | None = None
    job: Job | None = None


@attrs.frozen(kw_only=True)
class Machine:
    """Where it was measured; figures of two machines do not go into one file.

    Args:
        device: name of the card, or of the processor's kind.
        memory_gib: its memory, rounded; 0 for the CPU.
        driver: version of its driver; empty where there is none.
        cuda: version of CUDA that PyTorch was built with; empty for the CPU.
        torch: version of PyTorch.
        python: version of Python.
        tiny: whether parts are so small that their figures mean nothing.
    """

    device: str
    memory_gib: int
    driver: str
    cuda: str
    torch: str
    python: str
    tiny: bool

    @classmethod
    def here(cls, device: str, *, tiny: bool) -> Machine:
        """Return this machine.

        Args:
            device: `cuda` or `cpu`.
            tiny: whether parts are small.
        """
        on_gpu = device == "cuda"
        return cls(
            device=torch.cuda.get_device_name() if on_gpu else platform.machine(),
            memory_gib=round(torch.cuda.get_device_properties(0).total_memory / GIB) if on_gpu else 0,
            driver=_driver() if on_gpu else "",
            cuda=(torch.version.cuda or "") if on_gpu else "",
            torch=str(torch.__version__),
            python=platform.python_version(),
            tiny=tiny,
        )

    def __str__(self) -> str:
        """Return the machine in a line."""
        card = f"{self.device}, {self.memory_gib} GiB, driver {self.driver or 'unknown'}, CUDA {self.cuda}"
        return f"{card if self.cuda else self.device}, PyTorch {self.torch}, Python {self.python}"


@attrs.frozen(kw_only=True)
class Results:
    """All that was measured on a machine.

    Args:
        machine: where.
        outcomes: what came of each part, by its name.
    """

    machine: Machine
    outcomes: Mapping[str, Outcome]


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)  # noqa: S603
    return done.stdout.strip()


def read_results(path: Path, machine: Machine) -> Results:
    """Return what a file holds; nothing measured where there is none.

    Args:
        path: of the file.
        machine: where is measured now.

    Raises:
        ValueError: if it was measured elsewhere, or is not such a file.
    """
    if not path.exists():
        return Results(machine=machine, outcomes={})
    advice = "remove the file, or choose another --output"
    try:
        results = from_json(path.read_text(encoding="utf-8"), Results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {advice}") from error
    if results.machine != machine:
        raise ValueError(f"{path} was measured on {results.machine}, and this is {machine}; {advice}")
    return results


def write_results(path: Path, results: Results) -> None:
    """Write a file anew, whole or not at all."""
    with atomic_write(path) as file:
        file.write(f"{to_json(results, indent=1)}\n".encode())
