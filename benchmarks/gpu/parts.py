"""The parts: what each measures, with which choices, and how long it may take."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import attrs

from benchmarks import cost_reinforce, loss, reinforce, train
from benchmarks.gpu.results import Job, Outcome, PytestCounts
from benchmarks.rivals import Size

Device = Literal["cpu", "cuda"]
ROOT = Path(__file__).parents[2]

SIZES: tuple[Size, ...] = ("s0", "s2", "b")
LOSS_BATCHES = (8192, 16384, 32768, 65536, 131072)
TINY_LOSS_BATCHES = (64, 128)
# Most of which is the compiler's: S2 has the most layers that differ.
_COMPILED_SECONDS: dict[Size, float] = {"s0": 120, "s2": 150, "b": 120}


@attrs.frozen(kw_only=True)
class Part:
    """One thing to measure, in a process of its own.

    Args:
        limit_seconds: after so long it is ended.
        measure: does it.
    """

    limit_seconds: float
    measure: Callable[[], Outcome]


def parts(device: Device, *, tiny: bool) -> dict[str, Part]:
    """Return the parts by name, in their order; on a GPU, their limits add up to less than 23 minutes.

    Args:
        device: where to measure.
        tiny: with models, batches and rounds so small that it only shows whether all runs.
    """
    found = {"tests": Part(limit_seconds=300, measure=partial(run_tests, device))}
    # On the CPU, what is compiled of S0 takes minutes to build and ends in a double free.
    for compiled, size in product((False, True) if device == "cuda" else (False,), SIZES[:1] if tiny else SIZES):
        spec = train_spec(device, size, compiled=compiled, tiny=tiny)
        name = f"train {size}{' compiled' if compiled else ''}"
        found[name] = Part(
            limit_seconds=_COMPILED_SECONDS[size] if compiled else 40, measure=partial(compare_steps, spec)
        )
    for batch in TINY_LOSS_BATCHES if tiny else LOSS_BATCHES:
        for side in ("tiled", "dense"):
            limit = 60 if batch == max(LOSS_BATCHES) and side == "tiled" else 25
            measure = partial(measure_loss, side, loss.LossBenchSpec(device=device), batch)
            found[f"loss {batch} {side}"] = Part(limit_seconds=limit, measure=measure)
    costs = cost_reinforce.CostSpec(device=device, precision="bfloat16", batch_size=128)
    job = reinforce.ReinforceBenchSpec(
        model="ViT-L-14", num_samples=256, num_rounds=2, device=device, precision="bfloat16"
    )
    if tiny:
        costs = attrs.evolve(
            costs, teacher="ViT-S-32-alt", captioner="coca_ViT-B-32", precision="float32", batch_size=1, num_rounds=1
        )
        job = attrs.evolve(
            job, model="ViT-S-32-alt", num_samples=2, num_augmentations=2, num_rounds=1, precision="float32"
        )
    found["reinforce rates"] = Part(limit_seconds=150, measure=partial(measure_rates, costs))
    found["reinforce job"] = Part(limit_seconds=120, measure=partial(reinforce_pictures, job))
    # A CPU is for trying it, and may be a busy one.
    factor = 1 if device == "cuda" else 8
    return {name: attrs.evolve(part, limit_seconds=factor * part.limit_seconds) for name, part in found.items()}


def train_spec(device: Device, size: Size, *, compiled: bool, tiny: bool) -> train.TrainBenchSpec:
    """Return the comparison of one model: on a GPU in bfloat16 and channels_last, as such models are trained."""
    spec = train.TrainBenchSpec(models=(size,), device=device, compile="step" if compiled else None)
    if tiny:
        return attrs.evolve(spec, batch_size=2, rounds=2)
    return attrs.evolve(spec, batch_size=128, rounds=20, precision="bfloat16", channels_last=spec.device == "cuda")


def compare_steps(spec: train.TrainBenchSpec) -> Outcome:
    """Compare the training steps of one model."""
    ((_, comparison),) = train.measure(spec)
    return Outcome(training=comparison)


def measure_loss(side: loss.Side, spec: loss.LossBenchSpec, batch: int) -> Outcome:
    """Measure the loss, one of the two ways."""
    return Outcome(loss=loss.measure(side, spec, batch))


def measure_rates(spec: cost_reinforce.CostSpec) -> Outcome:
    """Measure what the teachers and the captioner take."""
    return Outcome(rates=cost_reinforce.measure(spec))


def reinforce_pictures(spec: reinforce.ReinforceBenchSpec) -> Outcome:
    """Reinforce pictures, and make the bare passes of the teacher beside."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        rounds = reinforce.measure(spec, Path(folder))
    return Outcome(job=Job(num_views=spec.num_samples * spec.num_augmentations, rounds=tuple(rounds)))


def run_tests(device: Device) -> Outcome:
    """Run the tests that are marked `gpu`; on the CPU, those of them that can run there.

    Raises:
        RuntimeError: if they cannot be collected.
    """
    files = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *map(str, files)]
        environment = os.environ | ({"GPU_TESTS_ON": "cpu"} if device == "cpu" else {})
        subprocess.run(command, cwd=ROOT, env=environment, check=False)  # noqa: S603
        if not report.exists():
            raise RuntimeError("pytest wrote no report of the tests; what it printed says why")
        return Outcome(tests=read_report(report))


def read_report(path: Path) -> PytestCounts:
    """Return what pytest's JUnit report says.

    Args:
        path: of a report that this program's own pytest wrote.
    """
    cases = list(ET.parse(path).getroot().iter("testcase"))  # noqa: S314
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return PytestCounts(
        num_passed=len(cases) - len(failed) - len(skipped),
        num_skipped=len(skipped),
        failed=tuple(f"{case.get('classname')}.{case.get('name')}" for case in failed),
    )
