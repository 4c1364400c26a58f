"""Measures time and memory, of several sides in turn."""

from __future__ import annotations

import ctypes
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
import torch

from benchmarks.harness.results import Value
from mobileclip.inference.comparison import orders

Found = TypeVar("Found")

_FEWEST_ROUNDS = 5
# Numbers of glibc's malloc.h: freed memory beyond this goes back to the system; so many blocks may be of their own.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


@attrs.frozen(kw_only=True)
class Seconds:
    """The duration of a call.

    Args:
        wall: wall-clock time.
        cpu: processor time of this process and of its ended child processes.
    """

    wall: float
    cpu: float


def seconds_of(call: Callable[[], object]) -> Seconds:
    """Return the duration of a call, including its work on a GPU."""
    wall, cpu = time.perf_counter(), _processor_seconds()
    call()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return Seconds(wall=time.perf_counter() - wall, cpu=_processor_seconds() - cpu)


def clocked(call: Callable[[], object]) -> Callable[[], Seconds]:
    """Return a function that measures the duration of a call."""
    return lambda: seconds_of(call)


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def in_turn(sides: Mapping[str, Callable[[], Found]], *, rounds: int) -> dict[str, list[Found]]:
    """Return the results of each side, called once per round in random order.

    If the machine is slower for a while, this affects all sides.

    Args:
        sides: functions to measure, by name.
        rounds: number of calls per side.
    """
    names = list(sides)
    found: dict[str, list[Found]] = {name: [] for name in names}
    for order in orders(len(names), rounds=rounds):
        for which in order:
            found[names[which]].append(sides[names[which]]())
    return found


def rounds_of(rounds: int, *, batch_size: int) -> int:
    """Return the number of rounds for a batch: `rounds` for one input; else a third, but at least `min(5, rounds)`."""
    return rounds if batch_size == 1 else max(min(_FEWEST_ROUNDS, rounds), rounds // 3)


def spread(numbers: Sequence[float], unit: str = "") -> Value:
    """Return the median, with quartiles if there are several numbers."""
    if len(numbers) == 1:
        return Value(number=numbers[0], unit=unit)
    low, middle, high = statistics.quantiles(numbers, n=4)
    return Value(number=middle, unit=unit, low=low, high=high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Value:
    """Return the median of the ratios of neighbouring measurements with their quartiles."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def start_peak(device: str) -> int:
    """Reset the peak memory of this process, and return its current memory in bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Return the peak memory of this process in bytes since `start_peak`, or since the process began."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(lines[field].split()[0])


def keep_memory() -> bool:
    """Let this process keep freed memory if the C library is glibc; return whether this works.

    By default, glibc returns the memory of feature maps beyond 32 MiB, and of smaller maps at the end of the heap, to
    the system after each layer, and the system zeroes new pages for the next layer. This depends on the history of the
    process: an eager batch of 32 takes up to twice as long after a compiler has run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
