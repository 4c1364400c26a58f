"""Runs the steps in order, and reuses the results of earlier runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

from examples.icons import build_dataset
from examples.quickstart.emoji.joint import JointTeacher
from examples.quickstart.emoji.on_disk import DrawnDataset
from mobileclip.storage import write_text
from mobileclip.terminal import say
from studies.captioner.captions import Part, examples, judged, part_of
from studies.captioner.report import PICTURE, captions_lines, draw, report
from studies.captioner.spec import ARMS, LINES, CaptionerStudySpec, Line
from studies.learning_efficiency.results import append, read_lines
from studies.learning_efficiency.scoring import HeldOut, held_out, score_student
from studies.learning_efficiency.spec import Cell
from studies.learning_efficiency.stores import load_store, make_stores, store_of
from studies.learning_efficiency.students import train_student
from studies.learning_efficiency.teachers import build_teachers
from studies.learning_efficiency.variants import FIRST, VARIANTS


def run(spec: CaptionerStudySpec) -> list[Line]:
    """Run the unfinished parts of the study, write the report, and return all lines.

    Raises:
        ValueError: if the output folder holds a study with other settings, or a step fails.
    """
    spec = spec.resolved
    path = spec.output / LINES
    lines = read_lines(path, Line, study=spec.study)
    done = {(one.arm, one.budget, one.seed) for one in lines if one.kind == "student"}
    waiting = [(arm, cell) for arm, cell in spec.cells() if (arm, cell.budget, cell.seed) not in done]
    steps = sum(cell.budget for _, cell in waiting)
    say(f"{len(waiting):,} of {len(spec.cells()):,} students are to be trained: {steps:,} steps")
    dataset = build_dataset(attrs.evolve(spec.data, output=spec.output / "data"))
    parts = held_out(dataset, [spec.students("").student.image.input])
    teachers: dict[str, JointTeacher] = {}
    captions: dict[str, Part] = {}
    try:
        for arm, cell in waiting:
            if {*ARMS[arm].teachers} - {*teachers}:
                teachers = build_teachers(spec.students(""), dataset, [ARMS[arm].teachers])
            if arm not in captions:
                captions[arm] = _captions(spec, dataset, arm, path)
            line = _student(spec, arm, cell, captions[arm], teachers=teachers, parts=parts)
            append(path, line)
            say(f"{arm}, {cell.budget} steps, seed {cell.seed}: {line.values}")
        if any(ARMS[arm].teachers for arm, _ in spec.cells()):
            _ask_teacher(spec, dataset, path)
    finally:
        # An interrupted study has a report of what is finished.
        lines = read_lines(path, Line, study=spec.study)
        text = report(lines, examples(list(captions.items())))
        write_text(spec.output / "report.md", text)
        draw(lines, spec.output / PICTURE)
    say(text)
    return lines


def _captions(spec: CaptionerStudySpec, dataset: DrawnDataset, arm: str, path: Path) -> Part:
    """Return an arm's images and captions, and add a result line about the captions if it is missing."""
    part = part_of(spec, dataset.train, ARMS[arm])
    if ARMS[arm].own_captions not in captions_lines(read_lines(path, Line)):
        append(path, judged(spec, dataset.train, arm, part))
    return part


def _ask_teacher(spec: CaptionerStudySpec, dataset: DrawnDataset, path: Path) -> None:
    """Measure the fit of all captions with the first teacher where this is missing."""
    known = captions_lines(read_lines(path, Line))
    chosen = {ARMS[arm].own_captions: arm for arm, _ in reversed(spec.cells())}
    waiting = [arm for own, arm in chosen.items() if own not in known or "cosine" not in known[own].values]
    if waiting:
        teacher = build_teachers(spec.students(""), dataset, [(FIRST,)])[FIRST]
        for arm in waiting:
            append(path, judged(spec, dataset.train, arm, part_of(spec, dataset.train, ARMS[arm]), teacher))


def _student(
    spec: CaptionerStudySpec,
    arm: str,
    cell: Cell,
    part: Part,
    *,
    teachers: Mapping[str, JointTeacher],
    parts: Mapping[str, HeldOut],
) -> Line:
    """Train a student and return its scores."""
    students = spec.students(ARMS[arm].source)
    make_stores(students, [cell], teachers, part)  # type: ignore[arg-type]  # of a split, samples alone are asked
    samples = load_store(students, store_of(cell, students), VARIANTS[cell.variant])
    folder = students.output / "runs" / cell.name
    started, processor = time.monotonic(), time.process_time()
    scores = score_student(train_student(students, cell, samples, folder), parts)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return Line(
        study=spec.study,
        arm=arm,
        kind="student",
        budget=cell.budget,
        seed=cell.seed,
        values={name: round(one.top5, 3) for name, one in scores.items()},
        seconds=round(time.monotonic() - started, 1),
        processor_seconds=round(time.process_time() - processor, 1),
    )
