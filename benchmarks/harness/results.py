"""What was measured, where and when, and the file that keeps it and that a later run goes on with."""

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
        number: what was measured; the median or the mean where it was measured several times.
        unit: of it, such as `ms`; empty for none.
        low: end of its interval: a quartile, or what the benchmark says; None for no interval.
        high: the other end.
    """

    number: float
    unit: str = ""
    low: float | None = None
    high: float | None = None


@attrs.frozen(kw_only=True)
class Row:
    """What came of one case, or of one side of it.

    Args:
        case: what was measured, such as the model and the batch.
        values: the numbers, by name.
        notes: what is no number, by name.
        failure: why there are no numbers; None where there are.
        seconds: that the whole case took.
        load: load average of the machine when the case began.
        commit: of the checkout; empty where nobody knows.
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
    """Where it was measured; figures of two machines do not go into one file.

    Args:
        processor: what the processor calls itself.
        threads: that PyTorch computes with.
        card: of CUDA, with its memory and the versions of driver and CUDA; empty for the processor alone.
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
        """Return this machine; with its card where `device` is `cuda`."""
        return cls(
            processor=processor(),
            threads=torch.get_num_threads(),
            card=_card() if device.startswith("cuda") else "",
            torch=str(torch.__version__),
            python=platform.python_version(),
        )

    def __str__(self) -> str:
        """Return the machine in a line."""
        where = self.card or f"{self.processor}, {self.threads} threads"
        return f"{where}, PyTorch {self.torch}, Python {self.python}"


@attrs.frozen(kw_only=True)
class Results:
    """All that a benchmark has measured.

    Args:
        benchmark: its name.
        choices: of it, as its flags are called.
        machine: where.
        rows: what came of the cases.
    """

    benchmark: str
    choices: Mapping[str, Any]
    machine: Machine
    rows: tuple[Row, ...] = ()


def read_results(path: Path, now: Results, *, selects: frozenset[str]) -> Results:
    """Return `now` with the rows of a file; without any where there is none.

    Args:
        path: of the file.
        now: what is about to be measured.
        selects: choices that may differ, since they say which cases there are.

    Raises:
        ValueError: if the file was measured otherwise or elsewhere, or is none of results.
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
        raise ValueError(f"{path} was measured otherwise: {told}; {_ADVICE}")
    return attrs.evolve(now, rows=then.rows)


def write_results(path: Path, results: Results) -> None:
    """Write a file anew, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"{to_json(results, indent=1)}\n".encode())


def load_average() -> float:
    """Return how many processes computed or waited to, in the mean of the last minute."""
    return round(os.getloadavg()[0], 2)


@cache
def commit() -> str:
    """Return the commit of this checkout, with a plus behind it where files differ from it."""
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
    """Return a number as people read it: three digits, and a cosine with as many as tell it from one."""
    if unit == "cosine":
        return f"1 - {1 - number:.0e}" if 1 - 1e-5 < number < 1 else f"{number:.5f}"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
