"""All trainings, a few at once; what an earlier run finished is read, not done again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path

import torch

from examples.learning_efficiency.data import load_roles
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.students import Material, Run, RunResult, load_material, train_one
from mobileclip.progress import Progress
from mobileclip.terminal import console, say
from mobileclip.terminal.interruption import ending, save_for_parent
from mobileclip.training import read_metrics

_SECONDS_BETWEEN_LOOKS = 2.0


def runs(spec: EfficiencySpec) -> list[Run]:
    """Return every training of the comparison.

    Seed by seed, so that an unfinished comparison has whole curves of the first seeds.
    """
    return [
        Run(variant=name, budget=budget, seed=seed, folder=spec.output / "runs" / name / str(budget) / str(seed))
        for seed in range(spec.num_seeds)
        for budget in spec.budgets
        for name in spec.variants
    ]


def finished(spec: EfficiencySpec) -> list[RunResult]:
    """Return what has been trained so far."""
    return [result for run in runs(spec) if (result := run.result) is not None]


def run_grid(spec: EfficiencySpec, directories: Mapping[bool, Path]) -> None:
    """Train what is not trained yet, every training from its last checkpoint on.

    Args:
        spec: the choices.
        directories: the reinforced shards, by whether they are strongly augmented.

    Raises:
        FloatingPointError: if a loss is not finite; the message has the step and the pictures.
    """
    every = runs(spec)
    waiting = [run for run in every if run.result is None]
    if not waiting:
        say(f"training: all {len(every)} were done by earlier runs")
        return
    done = {run.folder: _steps_done(run) for run in waiting}
    before = sum(run.budget for run in every if run not in waiting) + sum(done.values())
    title = f"{len(waiting)} of {len(every)} trainings"
    context = multiprocessing.get_context("spawn")
    with (
        Progress(
            title, total=sum(run.budget for run in every), done=before, unit="steps", console=console()
        ) as progress,
        ProcessPoolExecutor(
            min(spec.num_processes, len(waiting)),
            mp_context=context,
            initializer=_open,
            initargs=(spec, dict(directories)),
        ) as pool,
        ending(pool),
    ):
        running = {pool.submit(_train, run) for run in waiting}
        while running:
            ended, running = wait(running, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
            _count(waiting, done, progress)


def _count(waiting: Sequence[Run], done: dict[Path, int], progress: Progress) -> None:
    for run in waiting:
        # A resumed run first goes back to its last checkpoint, behind what was counted.
        steps = max(done[run.folder], _steps_done(run))
        if steps > done[run.folder]:
            progress.advance(steps - done[run.folder])
            done[run.folder] = steps


def _steps_done(run: Run) -> int:
    metrics = run.folder / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    return int(lines[-1]["step"]) + 1 if lines else 0


# What a process reads once, for all of its trainings.
_held: dict[str, tuple[EfficiencySpec, Material]] = {}


def _open(spec: EfficiencySpec, directories: Mapping[bool, Path]) -> None:
    save_for_parent()
    # One core for each training: small networks do not fill two.
    torch.set_num_threads(1)
    _held["material"] = (
        spec,
        load_material(spec, load_roles(spec.roles, spec.data, spec.output / "data"), directories),
    )


def _train(run: Run) -> None:
    spec, material = _held["material"]
    train_one(spec, run, material)
