"""Runs the steps in order, and reuses the results of an earlier run."""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

import mobileclip
from examples.quickstart.emoji.dataset import build_dataset
from examples.quickstart.emoji.teachers import build_teachers
from examples.quickstart.report import Results, tables, write_report
from examples.quickstart.scoring import differences, score_student, score_teachers
from examples.quickstart.spec import ROWS, TEACHERS, TITLES, QuickstartSpec, loss_of
from examples.quickstart.students import MODEL, Student, seconds_per_step, train_students
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.reinforce import reinforce
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say

_RESULTS, _INDEX = "results.json", "held_out.index"


@attrs.define
class Clock:
    """Adds up the seconds of each step."""

    seconds: dict[str, float] = attrs.field(factory=dict)

    @contextmanager
    def __call__(self, step: str, *, done: bool = False) -> Iterator[None]:
        """Add the time inside the context to `step`; print a line if an earlier run did the work."""
        if done:
            say(f"{step}: done by an earlier run")
        started = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - started


def run(spec: QuickstartSpec) -> Results:
    """Run the unfinished steps of the quickstart, and return the results.

    Raises:
        ValueError: if the output folder holds a run with other settings, or a step fails.
    """
    spec = spec.resolved
    _claim(spec)
    finished = spec.output / _RESULTS
    if finished.exists():
        results = from_json(finished.read_text(encoding="utf-8"), Results)
        say("This run is finished. For a new run, delete the output folder or set --output.")
    else:
        results = _steps(spec)
        write_text(finished, to_json(results, indent=1))
    say("\n".join(tables(results)))
    say(f"\nThe report, the pictures and the model are in {spec.output}. Search the pictures that training never saw:")
    say(f'  {_command()} search "a yellow face" --index {shlex.quote(str(spec.output / _INDEX))} -o found.html')
    return results


def _steps(spec: QuickstartSpec) -> Results:
    clock = Clock()
    with clock("data", done=(spec.output / "data" / "datacard.json").exists()):
        downloads = spec.output / "download"
        dataset = build_dataset(spec.data, spec.output / "data", downloads=downloads)
        of_teachers = dataset
        if spec.teacher_data != spec.data:
            of_teachers = build_dataset(spec.teacher_data, spec.output / "teacher_data", downloads=downloads)
    with clock("teachers", done=(spec.output / "teachers" / "teachers.json").exists()):
        teachers = build_teachers(spec.teachers, of_teachers, spec.output / "teachers")
    with clock("reinforcement"):
        reinforced = reinforce(spec.reinforcement(dataset.train.shards), teachers=teachers)
        say(f"{reinforced}; {reinforced.num_done_before} of the shards by an earlier run")
    students = [
        Student(name=name, seed=seed, loss=loss_of(row, teachers), folder=spec.output / "runs" / f"{name}-{seed}")
        for seed in range(spec.seed, spec.seed + spec.num_seeds)
        for name, row in ROWS.items()
    ]
    with clock("training", done=all((one.folder / MODEL).exists() for one in students)):
        train_students(spec, students, reinforced.shards, num_samples=reinforced.num_samples)
    with clock("evaluation"):
        known = {
            name: [
                score_student(mobileclip.load(one.folder / MODEL), dataset.tests)
                for one in students
                if one.name == name
            ]
            for name in ROWS
        }
        known[TEACHERS] = [score_teachers(teachers, dataset.tests)]
        model = spec.output / "quickstart.safetensors"
        shutil.copyfile(next(one.folder / MODEL for one in students if one.name == "reinforced"), model)
        _index(spec.output / _INDEX, model, [shard for split in dataset.tests for shard in split.shards])
    results = Results(
        scores={name: [{split: of.scores for split, of in one.items()} for one in known[name]] for name in TITLES},
        titles={split.name: split.title for split in dataset.tests},
        num_images={split.name: split.num_samples for split in dataset.splits.values()},
        num_classes={split.name: len(split.class_names) for split in dataset.tests},
        seconds=clock.seconds,
        seconds_per_step={
            name: statistics.mean(seconds_per_step(one.folder) for one in students if one.name == name) for name in ROWS
        },
        agreement=reinforced.agreement,
        differences=differences(known),
    )
    found = {name: repeated[0] for name, repeated in known.items()}
    write_report(spec.output, results, dataset.splits["test_renderings"], found, seed=spec.seed)
    return results


def _index(folder: Path, model: Path, shards: list[Path]) -> None:
    """Index the images that training never saw, for searching."""
    shutil.rmtree(folder, ignore_errors=True)  # an index of an earlier run belongs to another student
    collection = Collection.create(folder, ModelSource(checkpoint=str(model)))
    collection.add(*shards, options=IndexOptions(show_progress=False))


def _claim(spec: QuickstartSpec) -> None:
    """Mark the output folder as made with `spec`, or raise if it was made with another spec."""
    path, own = spec.output / "spec.json", to_json(spec, indent=1)
    if not path.exists():
        spec.output.mkdir(parents=True, exist_ok=True)
        write_text(path, own)
    elif path.read_text(encoding="utf-8") != own:
        raise ValueError(
            f"{spec.output} holds a quickstart with other settings ({path}); delete it or give another --output"
        )


def _command() -> str:
    """Return `mobileclip` if the shell finds this environment's command, otherwise the command's path."""
    own = Path(sys.executable).parent / "mobileclip"
    found = shutil.which("mobileclip")
    return "mobileclip" if found is not None and Path(found) == own else os.path.relpath(own)
