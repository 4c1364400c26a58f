"""Time and memory, and several sides that take turns."""

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
    """How long something took.

    Args:
        wall: by the clock.
        cpu: of the processor, in this process and in those that it started and that have ended.
    """

    wall: float
    cpu: float


def seconds_of(call: Callable[[], object]) -> Seconds:
    """Return what a call takes, its work on a GPU included."""
    wall, cpu = time.perf_counter(), _processor_seconds()
    call()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return Seconds(wall=time.perf_counter() - wall, cpu=_processor_seconds() - cpu)


def clocked(call: Callable[[], object]) -> Callable[[], Seconds]:
    """Return a function that measures what a call takes."""
    return lambda: seconds_of(call)


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def in_turn(sides: Mapping[str, Callable[[], Found]], *, rounds: int) -> dict[str, list[Found]]:
    """Return what each side gives, called once a round, in an order that is drawn anew.

    A machine that slows down for a while slows all of them down.

    Args:
        sides: what is measured, by name.
        rounds: calls of each.
    """
    names = list(sides)
    found: dict[str, list[Found]] = {name: [] for name in names}
    for order in orders(len(names), rounds=rounds):
        for which in order:
            found[names[which]].append(sides[names[which]]())
    return found


def rounds_of(rounds: int, *, batch_size: int) -> int:
    """Return how many rounds a batch has: a third of those of one input, and five at least where that has as many."""
    return rounds if batch_size == 1 else max(min(_FEWEST_ROUNDS, rounds), rounds // 3)


def spread(numbers: Sequence[float], unit: str = "") -> Value:
    """Return the median with the quartiles, where there are several numbers."""
    if len(numbers) == 1:
        return Value(number=numbers[0], unit=unit)
    low, middle, high = statistics.quantiles(numbers, n=4)
    return Value(number=middle, unit=unit, low=low, high=high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Value:
    """Return the median of the ratios of neighbouring measurements with their quartiles."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def start_peak(device: str) -> int:
    """Start to watch the peak of this process's memory, and return the bytes it holds now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Return the most bytes that this process held since `start_peak`, or since it began."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(lines[field].split()[0])


def keep_memory() -> bool:
    """Let this process keep what is freed, where the C library is glibc; return whether it will.

    By default, feature maps beyond 32 MiB, and smaller ones at the end of the heap, go back to the system after each
    layer, and the next layer's come as pages of zeros. Whether they do depends on what else the process has done: an
    eager batch of 32 takes up to twice as long behind a compiler's run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
