"""Runs the steps in order, and reuses the results of earlier runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs

from examples.icons import build_dataset
from examples.icons.splits import TITLES
from examples.quickstart.emoji.on_disk import load_finished
from examples.quickstart.side_by_side import Job, side_by_side, use_threads
from mobileclip.terminal import say
from studies.learning_efficiency.report import write_report
from studies.learning_efficiency.results import RESULTS, Result, append, read_results
from studies.learning_efficiency.scoring import HeldOut, held_out
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.stores import make_stores
from studies.learning_efficiency.strict import STRICT, read_strict
from studies.learning_efficiency.students import measure_cell
from studies.learning_efficiency.teachers import build_teachers, ensembles_of, score_ensembles, untrained

# On two cores without other work; trainings of the default size.
_STEPS_PER_SECOND = 20


def run(spec: EfficiencySpec) -> dict[Cell, Result]:
    """Run the unfinished parts of the study, write the report, and return all results.

    Raises:
        ValueError: if the output folder holds a study with other settings, or a step fails.
    """
    spec = spec.resolved
    path = spec.output / RESULTS
    results = read_results(path, study=spec.study)
    cells = spec.cells()
    waiting = [cell for cell in cells if cell not in results]
    ensembles = ensembles_of(cells)
    say(what_is_left(cells, waiting, untrained(spec, ensembles)))
    dataset = build_dataset(attrs.evolve(spec.data, output=spec.output / "data"))
    teachers = build_teachers(spec, dataset, ensembles)
    scores = score_ensembles(spec, dataset, teachers, ensembles)
    for one in scores:
        said = ", ".join(f"{one.scores[name].top1:.1f} % on {name}" for name in one.scores)
        say(f"{' + '.join(one.names)}: top-1 {said}")
    make_stores(spec, cells, teachers, dataset.train)
    try:
        if waiting:
            before = sum(cell.budget for cell in cells) - sum(cell.budget for cell in waiting)
            run_grid(spec, waiting, results=path, steps_before=before)
    finally:
        # An interrupted study has a report of what is finished.
        results = read_results(path, study=spec.study)
        text = write_report(spec, results, scores, dataset, read_strict(spec.output / STRICT, dataset))
    say(text)
    say(f"\nThe report and the curves are in {spec.output}; the same command with more seeds or parts extends it.")
    return results


def what_is_left(cells: Sequence[Cell], waiting: Sequence[Cell], teachers: Sequence[str]) -> str:
    """Return the remaining work of a study, and its estimated duration.

    Args:
        cells: all requested trainings.
        waiting: unfinished trainings.
        teachers: teachers that must be trained first.
    """
    steps = sum(cell.budget for cell in waiting)
    first = f" Before that, an hour or so for each of the teachers: {', '.join(teachers)}." if teachers else ""
    return (
        f"{len(waiting):,} of {len(cells):,} trainings are to be done: {steps:,} steps, about "
        f"{steps / _STEPS_PER_SECOND / 3600:.1f} hours of two cores.{first} It may be stopped at any moment."
    )


def run_grid(spec: EfficiencySpec, waiting: Sequence[Cell], *, results: Path, steps_before: int) -> None:
    """Run trainings, each from its last checkpoint, and add their results to a file one by one.

    Args:
        spec: settings of the study.
        waiting: unfinished trainings, in the order of execution.
        results: the file.
        steps_before: number of steps of the finished trainings.

    Raises:
        FloatingPointError: if a loss is not finite; the message names the step and the images.
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
