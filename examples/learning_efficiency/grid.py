"""All trainings, a few at once."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import torch

from examples.icons.splits import TITLES
from examples.learning_efficiency.results import Result, append
from examples.learning_efficiency.scoring import HeldOut, held_out
from examples.learning_efficiency.spec import Cell, EfficiencySpec
from examples.learning_efficiency.students import measure_cell
from examples.quickstart.emoji.on_disk import load_finished
from mobileclip.progress import Progress
from mobileclip.terminal import console
from mobileclip.terminal.interruption import ending, save_for_parent
from mobileclip.training import last_metrics

_SECONDS_BETWEEN_LOOKS = 2.0


def run_grid(spec: EfficiencySpec, waiting: Sequence[Cell], *, results: Path, steps_before: int) -> None:
    """Do trainings, each from its last checkpoint on, and add their results to a file one by one.

    Args:
        spec: the choices.
        waiting: what is to be trained, in this order.
        results: the file.
        steps_before: steps of the trainings that are finished.

    Raises:
        FloatingPointError: if a loss is not finite; the message has the step and the pictures.
    """
    done = {cell: _steps_done(_folder(spec, cell)) for cell in waiting}
    total = steps_before + sum(cell.budget for cell in waiting)
    context = multiprocessing.get_context("spawn")
    with (
        Progress(
            f"{len(waiting)} trainings",
            total=total,
            done=steps_before + sum(done.values()),
            unit="steps",
            console=console(),
        ) as progress,
        ProcessPoolExecutor(
            min(spec.num_processes, len(waiting)), mp_context=context, initializer=_open, initargs=(spec,)
        ) as pool,
        ending(pool) as submit,
    ):
        running = {submit(_measure, cell) for cell in waiting}
        while running:
            ended, running = wait(running, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
            for future in ended:
                result = future.result()
                append(results, result)
                # Hundreds of finished trainings would otherwise hold optimiser states that nobody resumes.
                shutil.rmtree(_folder(spec, result.cell) / "checkpoints", ignore_errors=True)
                progress.advance(result.cell.budget - done.pop(result.cell))
            for cell, before in done.items():
                # A resumed run first goes back to its last checkpoint, behind what was counted.
                done[cell] = max(before, _steps_done(_folder(spec, cell)))
                if done[cell] > before:
                    progress.advance(done[cell] - before)


def _folder(spec: EfficiencySpec, cell: Cell) -> Path:
    return spec.output / "runs" / cell.name


def _steps_done(folder: Path) -> int:
    last = last_metrics(folder / "metrics.jsonl")
    return 0 if last is None else int(last["step"]) + 1


# What a process reads once, for all of its trainings.
_held: dict[str, tuple[EfficiencySpec, dict[str, HeldOut]]] = {}


def _open(spec: EfficiencySpec) -> None:
    save_for_parent()
    # One core for each training: small networks do not fill two.
    torch.set_num_threads(1)
    _held["material"] = spec, held_out(load_finished(spec.output / "data", TITLES), [spec.student.image.input])


def _measure(cell: Cell) -> Result:
    spec, parts = _held["material"]
    return measure_cell(spec, cell, parts, _folder(spec, cell))
