"""The steps, one after another; what an earlier run finished is read, not done again."""

from __future__ import annotations

import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

import mobileclip
from examples.quickstart.benchmarks import as_benchmarks
from examples.quickstart.commands import command
from examples.quickstart.emoji import DrawnDataset, build_dataset, build_teachers
from examples.quickstart.evaluate import Findings, evaluate_as_published, evaluate_model, evaluate_teachers
from examples.quickstart.report import Results, print_results, write_report
from examples.quickstart.search import INDEX, index_held_out
from examples.quickstart.spec import ROWS, TEACHERS, TITLES, QuickstartSpec, loss_of
from examples.quickstart.students import MODEL, Student, seconds_per_step, train_students
from examples.quickstart.together import compared
from mobileclip.evaluation import Benchmark
from mobileclip.reinforce import TeacherEnsemble, reinforce
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say

RESULTS = "results.json"
BENCHMARKS = "benchmarks"
FINDINGS = "findings.json"


@attrs.define
class Clock:
    """Adds up the seconds that each step takes."""

    seconds: dict[str, float] = attrs.field(factory=dict)

    @contextmanager
    def __call__(self, step: str, *, done: bool = False) -> Iterator[None]:
        """Count the time spent inside under the name `step`; say so where an earlier run did the work."""
        if done:
            say(f"{step}: done by an earlier run")
        started = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - started


def run(spec: QuickstartSpec) -> Results:
    """Run the quickstart, or what an earlier run left undone of it, and return the results.

    Raises:
        ValueError: if the output folder holds a run with other choices, or a step says why it cannot go on.
    """
    spec = spec.resolved
    _claim(spec)
    finished = spec.output / RESULTS
    if finished.exists():
        results = from_json(finished.read_text(encoding="utf-8"), Results)
        print_results(results)
        say("This run is done already. For a new one, delete its folder or give --output.")
        _say_what_is_left(spec.output)
        return results

    clock = Clock()
    with clock("data", done=(spec.output / "data" / "datacard.json").exists()):
        dataset = of_teachers = build_dataset(spec.data, spec.output / "data")
        if spec.teacher_data is not None:
            of_teachers = build_dataset(spec.teacher_data, spec.output / "teacher_data")
    with clock("teachers", done=(spec.output / "teachers" / "teachers.json").exists()):
        teachers = build_teachers(spec.teachers, of_teachers, spec.output / "teachers")
    with clock("reinforcement"):
        reinforced = reinforce(spec.reinforcement(dataset.train.shards), teachers=teachers)
        say(f"{reinforced}; {reinforced.num_done_before} of the shards by an earlier run")
    with clock("evaluation"):
        benchmarks = as_benchmarks(dataset, spec.output / BENCHMARKS)
        known = {TEACHERS: [_findings_of_teachers(spec, dataset, benchmarks, teachers)]}
    students = [
        Student(name=name, seed=seed, loss=loss_of(row, teachers), folder=spec.output / "runs" / f"{name}-{seed}")
        for seed in range(spec.seed, spec.seed + spec.num_seeds)
        for name, row in ROWS.items()
    ]
    with clock("training", done=all((one.folder / MODEL).exists() for one in students)):
        train_students(spec, students, reinforced.shards, num_samples=reinforced.num_samples)
    with clock("evaluation"):
        for one in students:
            known.setdefault(one.name, []).append(_findings_of_student(dataset, benchmarks, one))
        trained = next(one.folder / MODEL for one in students if one.name == "reinforced")
        model = spec.output / "quickstart.safetensors"
        shutil.copyfile(trained, model)
        published = evaluate_as_published(mobileclip.load(model), benchmarks)
        index_held_out(spec.output, [shard for split in dataset.tests for shard in split.shards], model)
    results = Results(
        scores={name: [dict(one.scores) for one in known[name]] for name in TITLES},
        titles={split.name: split.title for split in dataset.tests},
        num_images={split.name: split.num_samples for split in dataset.splits.values()},
        num_classes={split.name: len(split.class_names) for split in dataset.tests},
        seconds=clock.seconds,
        seconds_per_step={
            name: statistics.mean(seconds_per_step(one.folder) for one in students if one.name == name) for name in ROWS
        },
        agreement=reinforced.agreement,
        published=published,
        together=compared({name: [one.top5 for one in known[name]] for name in ROWS}),
    )
    write_report(
        spec.output,
        results,
        dataset,
        answers={name: repeated[0].answers for name, repeated in known.items()},
        seed=spec.seed,
        model_path=model,
        benchmarks=spec.output / BENCHMARKS,
    )
    _write(finished, to_json(results, indent=1))
    print_results(results)
    _say_what_is_left(spec.output)
    return results


def _say_what_is_left(output: Path) -> None:
    say(f"The report, the pictures and the model are in {output}. Search the pictures that training never saw:")
    say(f'  {command()} search "a yellow face" --index {shlex.quote(str(output / INDEX))} -o found.html')


def _findings_of_teachers(
    spec: QuickstartSpec, dataset: DrawnDataset, benchmarks: Mapping[str, Benchmark], teachers: TeacherEnsemble
) -> Findings:
    def evaluate() -> Findings:
        return evaluate_teachers(teachers, benchmarks, dataset.tests)

    return _remembered(spec.output / "teachers" / FINDINGS, evaluate)


def _findings_of_student(dataset: DrawnDataset, benchmarks: Mapping[str, Benchmark], student: Student) -> Findings:
    def evaluate() -> Findings:
        return evaluate_model(mobileclip.load(student.folder / MODEL), benchmarks, dataset.tests)

    return _remembered(student.folder / FINDINGS, evaluate)


def _remembered(path: Path, evaluate: Callable[[], Findings]) -> Findings:
    if not path.exists():
        _write(path, to_json(evaluate()))
    return from_json(path.read_text(encoding="utf-8"), Findings)


def _claim(spec: QuickstartSpec) -> None:
    """Mark the output folder as made with `spec`, or refuse one made with another."""
    path, own = spec.output / "spec.json", to_json(spec, indent=1)
    if not path.exists():
        _write(path, own)
    elif path.read_text(encoding="utf-8") != own:
        raise ValueError(f"{spec.output} holds a quickstart with other choices ({path}); delete it or give --output")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
