"""All trainings, a few at once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from examples.icons.splits import TITLES
from examples.quickstart.emoji.on_disk import load_finished
from examples.quickstart.side_by_side import Job, side_by_side, use_threads
from studies.learning_efficiency.results import Result, append
from studies.learning_efficiency.scoring import HeldOut, held_out
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.students import measure_cell


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
    jobs = [Job(folder=_folder(spec, one), steps=one.budget, work=partial(_measure, one)) for one in waiting]
    finished = side_by_side(
        jobs,
        num_processes=spec.num_processes,
        prepare=partial(_open, spec),
        title=f"{len(waiting)} trainings",
        steps_before=steps_before,
    )
    for result in finished:
        assert isinstance(result, Result), "every training gives one"
        append(results, result)
        # Hundreds of finished trainings would otherwise hold optimiser states that nobody resumes.
        shutil.rmtree(_folder(spec, result.cell) / "checkpoints", ignore_errors=True)


def _folder(spec: EfficiencySpec, cell: Cell) -> Path:
    return spec.output / "runs" / cell.name


# What a process reads once, for all of its trainings.
_held: dict[str, tuple[EfficiencySpec, dict[str, HeldOut]]] = {}


def _open(spec: EfficiencySpec) -> None:
    use_threads(1)
    _held["material"] = spec, held_out(load_finished(spec.output / "data", TITLES), [spec.student.image.input])


def _measure(cell: Cell) -> Result:
    spec, parts = _held["material"]
    return measure_cell(spec, cell, parts, _folder(spec, cell))
