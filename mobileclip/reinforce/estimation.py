"""Estimate of a reinforcement's cost from the first samples of the first shard."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import attrs
import torch

from mobileclip.data import ImageTextSample, SkipReport, ViewAgreement, read_reinforced_samples
from mobileclip.datasets import Unit
from mobileclip.engines import WorkerResources, default_num_threads
from mobileclip.hardware import AUTO, pick_device
from mobileclip.reinforce.encoding import CHANGED_BY, measure_agreement
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.worker import ReinforcementWork
from mobileclip.storage import join

_MAX_COUNTED = 16


@attrs.frozen(kw_only=True)
class Estimate:
    """The estimated cost of a complete reinforcement on one device.

    Args:
        num_shards: number of shards of the output.
        num_samples: number of samples in all shards, extrapolated from the first shards if there are many shards.
        num_measured: number of measured samples.
        samples_per_second: samples per second of one worker with loaded models.
        bytes_per_sample: size of a finished shard in bytes per sample, including images.
        loading_seconds: time to load a worker's models, in seconds.
        device: name of the measured device.
        agreement: agreement of the teachers on the stored views of the measured samples; None without a measurement.
    """

    num_shards: int
    num_samples: int
    num_measured: int
    samples_per_second: float
    bytes_per_sample: float
    loading_seconds: float
    device: str
    agreement: ViewAgreement | None = None

    @property
    def device_hours(self) -> float:
        """Time for the complete reinforcement on one device, in hours."""
        return self.num_samples / self.samples_per_second / 3600

    @property
    def num_bytes(self) -> int:
        """Estimated size of the output, in bytes."""
        return round(self.num_samples * self.bytes_per_sample)

    def __str__(self) -> str:
        from rich.filesize import decimal

        agreement = "" if self.agreement is None else f"\n{self.agreement}; {CHANGED_BY}"
        return (
            f"{self.num_samples:,} samples in {self.num_shards:,} shards: {self.device_hours:,.2f} hours of one device "
            f"({self.samples_per_second:,.2f} samples/s on {self.device}, measured on {self.num_measured} samples, "
            f"after {self.loading_seconds:.0f} s of loading) and {decimal(self.num_bytes)} "
            f"({decimal(round(self.bytes_per_sample))} per sample){agreement}"
        )


def estimate(spec: ReinforcementSpec, *, num_samples: int = 64, device: str = AUTO) -> Estimate:
    """Estimate the cost: reinforce the start of the first shard in a temporary folder, and extrapolate.

    Args:
        spec: options of the reinforcement.
        num_samples: maximum number of samples to measure, all from the first shard.
        device: name of a device; `auto` selects the best available device.

    Raises:
        ValueError: if no sample of the first shard can be reinforced, or the device does not exist.
    """
    device = str(pick_device(device))
    units = spec.units()
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        started = time.perf_counter()
        aside = attrs.evolve(spec, output=folder)
        resources = WorkerResources(device=device, num_threads=default_num_threads(device, 1))
        worker = ReinforcementWork(spec=aside).open(resources)
        loading_seconds = time.perf_counter() - started
        for count in (spec.batch_size, num_samples):  # a first batch, for compilation
            started = time.perf_counter()
            entry = worker(_Beginning(name=units[0].name, unit=units[0], num_samples=count), lambda _: None)()
        seconds = time.perf_counter() - started
        stored = islice(read_reinforced_samples([join(folder, units[0].name)]), spec.num_compared)
        agreement = None if worker.teachers is None else measure_agreement(list(stored), worker.teachers, aside)
    if entry.num_samples == 0:
        raise ValueError(f"none of the first {num_samples} samples of {units[0].name} is usable: {entry.skipped}")
    return Estimate(
        num_shards=len(units),
        num_samples=_count(units),
        num_measured=entry.num_samples,
        samples_per_second=entry.num_samples / seconds,
        bytes_per_sample=entry.num_bytes / entry.num_samples,
        loading_seconds=loading_seconds,
        device=torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else (f"{torch.get_num_threads()} CPU cores" if device == "cpu" else device),
        agreement=agreement,
    )


@attrs.frozen(kw_only=True)
class _Beginning(Unit):
    """The first samples of a unit.

    Args:
        unit: the complete unit.
        num_samples: maximum number of samples.
    """

    unit: Unit
    num_samples: int

    def fingerprint(self) -> str:
        """Return the complete unit's fingerprint."""
        return self.unit.fingerprint()

    def count(self) -> int:
        """Return the maximum number of samples."""
        return self.num_samples

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the first `num_samples` samples of the unit."""
        return islice(self.unit.read(report), self.num_samples)


def _count(units: Sequence[Unit]) -> int:
    """Return the number of samples, extrapolated from the first shards with a known number of samples."""
    known = [count for unit in units[:_MAX_COUNTED] if (count := unit.count()) is not None]
    if not known:
        known = [sum(1 for _ in units[0].read(SkipReport(log=False)))]
    return round(sum(known) / len(known) * len(units))
