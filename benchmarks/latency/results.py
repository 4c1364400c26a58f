"""What was measured, in a file that a later run goes on with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
import torch

from benchmarks.latency.exported import Runtime
from benchmarks.latency.spec import LatencyBenchSpec
from benchmarks.latency.ways import Latency
from benchmarks.lines import read_lines, write_lines
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference import processor


@attrs.frozen(kw_only=True)
class Setting:
    """What all figures of one file have in common.

    Args:
        processor: what the processor calls itself.
        threads: that PyTorch computes with.
        torch: its version.
        precision, compiled, runtimes, rounds, seed: as in `LatencyBenchSpec`.
    """

    processor: str
    threads: int
    torch: str
    precision: tuple[FastPrecision, ...]
    compiled: bool
    runtimes: tuple[Runtime, ...]
    rounds: int
    seed: int

    @classmethod
    def of(cls, spec: LatencyBenchSpec) -> Setting:
        """Return what a comparison is measured with on this machine."""
        return cls(
            processor=processor(),
            threads=spec.threads or torch.get_num_threads(),
            torch=str(torch.__version__),
            precision=spec.precision,
            compiled=spec.compiled,
            runtimes=spec.runtimes,
            rounds=spec.rounds,
            seed=spec.seed,
        )

    def __str__(self) -> str:
        """Return where it was measured."""
        return f"{self.processor}, {self.threads} threads, PyTorch {self.torch}"


@attrs.frozen(kw_only=True)
class Line:
    """One line of the file.

    Args:
        setting: how it was measured.
        latency: what one way took for one case.
    """

    setting: Setting
    latency: Latency


def read_results(path: Path, setting: Setting) -> list[Latency]:
    """Return what a file holds; nothing where there is none.

    Raises:
        ValueError: if it was measured otherwise, or is not such a file.
    """
    lines = read_lines(path, Line)
    for line in lines:
        if line.setting != setting:
            raise ValueError(
                f"{path} was measured otherwise: {_difference(line.setting, setting)}; "
                "remove the file, or choose another --output"
            )
    return [line.latency for line in lines]


def write_results(path: Path, setting: Setting, latencies: Iterable[Latency]) -> None:
    """Write a file anew, whole or not at all."""
    write_lines(path, (Line(setting=setting, latency=latency) for latency in latencies))


def _difference(then: Setting, now: Setting) -> str:
    names = [field.name for field in attrs.fields(Setting)]
    pairs = {name: (getattr(then, name), getattr(now, name)) for name in names}
    return ", ".join(f"{name} was {one} and is {other}" for name, (one, other) in pairs.items() if one != other)
