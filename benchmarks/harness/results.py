"""Results of a benchmark with machine and commit, and the file that stores results so that a run can resume."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch

from mobileclip.inference import processor
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import atomic_write

_ADVICE = "remove the file, or choose another --output"


@attrs.frozen(kw_only=True)
class Value:
    """A number.

    Args:
        number: the measured value; a median or mean of several measurements.
        unit: unit of the number, such as `ms`; empty for no unit.
        low: lower end of the interval, a quartile unless the benchmark says otherwise; None for no interval.
        high: upper end of the interval.
    """

    number: float
    unit: str = ""
    low: float | None = None
    high: float | None = None


@attrs.frozen(kw_only=True)
class Row:
    """The result of one case, or of one side in a case.

    Args:
        case: labels of the case, such as the model and the batch.
        values: the numbers, by name.
        notes: results that are not numbers, by name.
        failure: reason for missing numbers; None if there are numbers.
        seconds: duration of the whole case.
        load: load average of the machine when the case began.
        commit: commit of the checkout; empty if unknown.
    """

    case: Mapping[str, str] = attrs.field(factory=dict)
    values: Mapping[str, Value] = attrs.field(factory=dict)
    notes: Mapping[str, str] = attrs.field(factory=dict)
    failure: str | None = None
    seconds: float = 0.0
    load: float = 0.0
    commit: str = ""


@attrs.frozen(kw_only=True)
class Machine:
    """The machine of a measurement; a file has results of one machine only.

    Args:
        processor: name of the processor.
        threads: number of PyTorch's threads.
        card: CUDA device, with its memory and the versions of driver and CUDA; empty for results of the processor.
        torch: version of PyTorch.
        python: version of Python.
    """

    processor: str
    threads: int
    card: str
    torch: str
    python: str

    @classmethod
    def here(cls, device: str = "cpu") -> Machine:
        """Return this machine, with its card if `device` is a CUDA device."""
        return cls(
            processor=processor(),
            threads=torch.get_num_threads(),
            card=_card() if device.startswith("cuda") else "",
            torch=str(torch.__version__),
            python=platform.python_version(),
        )

    def __str__(self) -> str:
        """Return a one-line description of the machine."""
        where = self.card or f"{self.processor}, {self.threads} threads"
        return f"{where}, PyTorch {self.torch}, Python {self.python}"


@attrs.frozen(kw_only=True)
class Results:
    """All results of a benchmark.

    Args:
        benchmark: name of the benchmark.
        choices: settings of the benchmark, by flag.
        machine: the machine.
        rows: results of the cases.
    """

    benchmark: str
    choices: Mapping[str, Any]
    machine: Machine
    rows: tuple[Row, ...] = ()


def read_results(path: Path, now: Results, *, selects: frozenset[str]) -> Results:
    """Return `now` with the rows of a file, or without rows if the file does not exist.

    Args:
        path: path of the file.
        now: results to extend, with the settings of the current run.
        selects: settings that may differ, since they only select cases.

    Raises:
        ValueError: if the file has other settings or another machine, or is not a results file.
    """
    if not path.exists():
        return now
    try:
        then = from_json(path.read_text(encoding="utf-8"), Results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_ADVICE}") from error
    both = [
        {"benchmark": one.benchmark, "machine": str(one.machine)}
        | {name: value for name, value in one.choices.items() if name not in selects}
        for one in (then, now)
    ]
    names = [name for name in both[0] | both[1] if both[0].get(name) != both[1].get(name)]
    if names:
        told = ", ".join(f"{name} was {both[0].get(name)} and is {both[1].get(name)}" for name in names)
        raise ValueError(f"{path} has other settings: {told}; {_ADVICE}")
    return attrs.evolve(now, rows=then.rows)


def write_results(path: Path, results: Results) -> None:
    """Replace a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"{to_json(results, indent=1)}\n".encode())


def load_average() -> float:
    """Return the load average of the last minute: the mean number of running or waiting processes."""
    return round(os.getloadavg()[0], 2)


@cache
def commit() -> str:
    """Return the commit of this checkout, followed by a plus if files differ from the commit."""
    said = _said(
        "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"
    )
    return said or ""


def _card() -> str:
    memory = round(torch.cuda.get_device_properties(0).total_memory / 2**30)
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0") or "unknown"
    return f"{torch.cuda.get_device_name()}, {memory} GiB, driver {driver}, CUDA {torch.version.cuda}"


def _said(program: str, *arguments: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    done = subprocess.run([path, *arguments], capture_output=True, text=True, encoding="utf-8", check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else None


def text(number: float, unit: str = "") -> str:
    """Return a number with three digits, or a cosine with enough digits to differ from one."""
    if unit == "cosine":
        return f"1 - {1 - number:.0e}" if 1 - 1e-5 < number < 1 else f"{number:.5f}"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
