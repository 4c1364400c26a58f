"""Evaluates several models on several data sets, caches embeddings, and prints and reports the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mobileclip import storage
from mobileclip.evaluation.candidates import Candidate, candidate_device, open_candidate, require_candidates
from mobileclip.evaluation.data import hash_of, require_different_names
from mobileclip.evaluation.features import NOT_A_NAME, Session, measure_latency, origin
from mobileclip.evaluation.results import (
    DatasetResult,
    ModelResults,
    add_result,
    published_model,
    published_results,
)
from mobileclip.evaluation.spec import OWN, EvaluationSpec
from mobileclip.evaluation.suite import suite_sizes
from mobileclip.evaluation.tasks.catalogue import find_task, is_data_set, suite_tasks
from mobileclip.evaluation.tasks.task import FoundTask
from mobileclip.inputs import Interpolation
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Pace, duration
from mobileclip.terminal import console, print_table, say
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from rich.console import Console

    from mobileclip.evaluation.tables import Cell, Table

RESULTS = "results.jsonl"


@attrs.frozen(kw_only=True)
class Failure:
    """A failed evaluation of a model, or of a model on one data set.

    Args:
        model: name of the model; the argument as typed if the model could not be opened.
        task: name of the data set; empty if the model itself failed.
        message: reason for the failure, for display.
    """

    model: str
    task: str
    message: str


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """The results of an evaluation of several models.

    Args:
        models: results of the models that could be opened, in order.
        failures: failed models and data sets.
    """

    models: tuple[ModelResults, ...]
    failures: tuple[Failure, ...]


def evaluate_models(
    models: Sequence[str | Candidate],
    spec: EvaluationSpec,
    *,
    for_report: bool = False,
    console: Console | None = None,
) -> Run:
    """Evaluate models one after another; after a failure on a data set, record the error and continue.

    Args:
        models: model arguments of `open_candidate`, or candidates.
        spec: data sets and options of the evaluation.
        for_report: whether to measure the latency of encoding one image and one text, for a report.
        console: console that shows the progress; None for no output.

    Raises:
        ValueError: if there are no models; if a model, a data set or a device is unknown or missing; if two models have
            the same name; or if a local data set in `spec.datasets` cannot be opened. The function raises each of these
            errors before any computation.
        OSError: if a file is missing, or the results cannot be written.
    """
    if not models:
        raise ValueError("there are no models to evaluate; pass a name such as mobileclip_s2, or a file of weights")
    with storage.use_limits(spec.stores):
        return _evaluated(models, spec, for_report=for_report, console=console)


def _evaluated(
    models: Sequence[str | Candidate], spec: EvaluationSpec, *, for_report: bool, console: Console | None
) -> Run:
    named = [model for model in models if isinstance(model, str)]
    require_candidates(named)
    for name in named:
        candidate_device(name, spec.device)
    tasks = _tasks(spec)
    storage.require_output(spec.output / "model" / RESULTS, overwrite=True)
    _require(tasks, spec)
    runs: list[ModelResults] = []
    failures: list[Failure] = []
    choices = [(resized, text) for resized in spec.interpolation or (None,) for text in spec.text_model or (OWN,)]
    # A candidate already has its preprocessing and its towers.
    opened = [(one, *own) for one in models for own in (choices if isinstance(one, str) else ((None, OWN),))]
    for model, interpolation, text_model in opened:
        try:
            candidate = model if isinstance(model, Candidate) else _opened(model, spec, interpolation, text_model)
        except (ValueError, OSError, ImportError) as error:
            raise_machine_fault(error)
            failures.append(Failure(model=str(model), task="", message=str(error)))
            continue
        evaluator = _Evaluator(candidate, spec, for_report=for_report, console=console)
        runs.append(evaluator.run(tasks))
        failures += evaluator.failures
        del candidate, evaluator
    return Run(models=tuple(runs), failures=tuple(failures))


def _opened(name: str, spec: EvaluationSpec, interpolation: Interpolation | None, text_model: str) -> Candidate:
    return open_candidate(
        name,
        device=spec.device,
        precision=spec.precision,
        image_size=spec.image_size,
        context_length=spec.context_length,
        interpolation=interpolation,
        trust=spec.trust,
        text_model=None if text_model == OWN else text_model,
    )


def _tasks(spec: EvaluationSpec) -> tuple[FoundTask, ...]:
    if not spec.datasets:
        return suite_tasks(spec.suite, spec.data)
    tasks = tuple(find_task(name, spec.data) for name in spec.datasets)
    require_different_names(task.key for task in tasks)
    return tasks


def _require(tasks: Sequence[FoundTask], spec: EvaluationSpec) -> None:
    """Raise an error if a local data set in `spec.datasets` cannot be opened.

    For an unreadable data set of a suite, the run reports a failure at the end instead.
    """
    for task in tasks:
        if spec.datasets and not storage.is_remote(task.path):
            task.open(spec.task_options)


class _Evaluator:
    """Evaluates one model on several tasks."""

    def __init__(
        self, candidate: Candidate, spec: EvaluationSpec, *, for_report: bool, console: Console | None
    ) -> None:
        self.candidate, self.spec, self.console, self.for_report = candidate, spec, console, for_report
        self.failures: list[Failure] = []
        # Time per image, estimated from the data sets of known size that this run encodes.
        self._seconds, self._pace = 0.0, Pace(0.0)
        folder = NOT_A_NAME.sub("-", candidate.name).strip("-") or "model"
        self.path = spec.output / f"{folder}-{candidate.weights_sha256[:8]}" / RESULTS
        self.session = Session.of(
            candidate,
            batch_size=spec.batch_size,
            num_threads=spec.num_threads,
            show_progress=console is not None,
            cache=spec.output / "features" if spec.cache else None,
        )

    def run(self, tasks: Sequence[FoundTask]) -> ModelResults:
        """Evaluate the model on the tasks, and return the results."""
        candidate = self.candidate
        results: dict[str, DatasetResult] = {}
        for number, task in enumerate(tasks, 1):
            self._say(f"[{number}/{len(tasks)}] {candidate.name} on {task.name}{self._left(tasks[number - 1 :])}")
            try:
                found = self._results(task)
                for result in found:
                    add_result(self.path, result, model=candidate.name)
            except (ValueError, OSError, ImportError) as error:
                raise_machine_fault(error)
                self.failures.append(Failure(model=candidate.name, task=task.name, message=str(error)))
                self._say(f"  failed: {error}")
                continue
            results |= {result.key: result for result in found}
            self._say(f"  {_spoken(found[0])}")
        return ModelResults(
            name=candidate.name,
            reference=candidate.published,
            num_parameters=candidate.num_parameters,
            results=results,
            path=self.path,
            latencies=(measure_latency(candidate.clip),) if self.for_report else (),
        )

    def _results(self, found: FoundTask) -> list[DatasetResult]:
        """Open a task, and return the results for the whole task and for its parts."""
        started = time.monotonic()
        task = found.open(self.spec.task_options)
        features = task.features(self.session)
        whole = task.score(features)
        if found.key in suite_sizes() and not features.from_cache:
            self._seconds += time.monotonic() - started
            self._pace.advance(suite_sizes()[found.key], self._seconds)
        evaluated = {
            "model": self.candidate.fingerprint,
            "weights_sha256": self.candidate.weights_sha256,
            "data": features.header.get("data", ""),
            **{name: features.header.get(name, value) for name, value in origin(self.candidate.clip).items()},
        }
        templates = hash_of(task.templates)[:8] if task.templates else None
        reading = {**self.candidate.reading, "templates": templates}
        return [attrs.evolve(row, reading=reading, evaluated=evaluated) for row in (whole, *whole.parts)]

    def _left(self, tasks: Sequence[FoundTask]) -> str:
        """Return the estimated remaining time of the tasks, for display; empty if unknown."""
        sizes = [suite_sizes().get(task.key) for task in tasks]
        seconds = self._pace.seconds(sum(filter(None, sizes)))
        return "" if seconds is None else f", {'at least' if None in sizes else 'about'} {duration(seconds)} left"

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)


def _spoken(result: DatasetResult) -> str:
    parts = [f"{100 * result.main_metric:.2f} %"]
    if result.interval is not None:
        parts.append(f"({100 * result.interval.low:.1f} to {100 * result.interval.high:.1f})")
    if result.num_images is not None:
        parts.append(f"of {result.num_images:,}")
    if result.left_out:
        parts.append(f"(left out: {', '.join(f'{count:,} {reason}' for reason, count in result.left_out.items())})")
    return " ".join(parts)


# Minimum width of the first column, in characters, unless the text is shorter; the other columns wrap first.
_NAME_WIDTH = 32


def evaluate_and_print(
    models: Sequence[str],
    spec: EvaluationSpec,
    *,
    compare_published: Sequence[str] = (),
    report: bool = False,
    strict: bool = False,
) -> None:
    """Evaluate models, and print the results and the differences between models.

    Args:
        models: model arguments of `open_candidate`.
        spec: data sets and options of the evaluation.
        compare_published: names of published models to add to the table.
        report: whether to write a report page with plots.
        strict: whether skipped samples count as a failure.

    Raises:
        SystemExit: with exit code 1 if a model or a data set could not be evaluated, or if samples were skipped and
            `strict` is true.
        ValueError: in the cases of `evaluate_models`, or if a name in `compare_published` is not a published model.
        ModuleNotFoundError: if matplotlib or jinja2 is not installed and `report` is true; the message explains how to
            install the package.
    """
    from mobileclip.evaluation.report import require_report

    for name in compare_published:
        published_results(name)
    if report:
        require_report()
    run = evaluate_models(models, spec, for_report=report, console=console())
    if any(model.results for model in run.models):
        summary = summarize(run, compare_published=compare_published)
        _print_results(run, summary)
        for model in summary:
            if model.name in compare_published and not model.results:
                own = ", ".join(sorted({key for measured in run.models for key in measured.results}))
                say(f"no results of {model.name} on {own} are published: papers use public data sets only")
        if report:
            page, *plots = write_summary(spec.output, summary)
            say(f"report: {page}")
            for plot in plots:
                say(f"plot: {plot}")
    for failure in run.failures:
        what = f"{failure.model} on {failure.task}" if failure.task else failure.model
        say(f"not evaluated: {what}: {failure.message}", error=True)
    left_out = sum(result.num_skipped or 0 for model in run.models for result in model.results.values())
    conclude(left_out=left_out, strict=strict, done=not run.failures)


def split_arguments(models: Sequence[str], spec: EvaluationSpec) -> tuple[tuple[str, ...], EvaluationSpec]:
    """Split arguments into models and data sets; return the models, and a copy of `spec` with the data sets.

    Args:
        models: arguments of the command line, each a model or a data set.
        spec: options of the evaluation; `datasets` may list further data sets.
    """
    data = tuple(one for one in models if is_data_set(one))
    others = tuple(one for one in models if one not in data)
    return others, attrs.evolve(spec, datasets=(*data, *spec.datasets))


def _print_results(run: Run, summary: Sequence[ModelResults]) -> None:
    """Print the tables of differences, results and languages, and the paths of the results files."""
    from mobileclip.evaluation.tables import compared_pairs, differences_table, language_table, results_table

    for pair in compared_pairs(summary):
        _print_table(differences_table(*pair))
    _print_table(results_table(summary))
    if (languages := language_table(summary)) is not None:
        _print_table(languages)
    say("Main metrics in per cent, with 95 % intervals.")
    for model in run.models:
        say(f"{model.name}: {model.path}")


def _print_table(table: Table) -> None:
    """Print a table of the report in the terminal."""
    from rich.table import Table as Printed

    printed = Printed(title=table.title, box=None)
    longest = max((len(row[0].text) for row in table.rows), default=0)
    for number, column in enumerate(table.columns):
        printed.add_column(
            "\n".join(filter(None, (column.title, column.small))),
            justify="right" if column.is_number else "left",
            overflow="fold",
            min_width=None if number else min(longest, _NAME_WIDTH),
        )
    for row in table.rows:
        printed.add_row(*(_printed(cell, is_first=number == 0) for number, cell in enumerate(row)))
    print_table(printed)


def _printed(cell: Cell, *, is_first: bool) -> str:
    """Return a cell as one line, with the interval in parentheses."""
    small = f" ({cell.small})" if cell.small and not is_first else ""
    return f"{cell.text}{small}"


def summarize(run: Run, *, compare_published: Sequence[str] = ()) -> tuple[ModelResults, ...]:
    """Return the results of the measured models, their published references, and further published models.

    For published models, keep only results on the measured data sets.

    Args:
        run: measured results.
        compare_published: names of further published models.

    Raises:
        ValueError: if no results of a model are published, or there is neither a measured nor a published model.
    """
    own = [model.reference for model in run.models if model.reference is not None]
    published = [published_model(name) for name in dict.fromkeys((*own, *compare_published))]
    measured = [
        attrs.evolve(model, name=f"{model.name} (measured)") if model.name == model.reference else model
        for model in run.models
    ]
    if not published and not measured:
        raise ValueError("there is nothing to show: no model could be opened")
    keys = {key for model in measured for key in model.results}
    return (*measured, *(model.only(keys) if keys else model for model in published))


def write_summary(folder: Path, models: Sequence[ModelResults]) -> tuple[Path, ...]:
    """Write `report.html`, and write its plots as PNG files to the folder `plots`; return the paths.

    Args:
        folder: output folder, created if missing.
        models: results of the models, from `summarize`.

    Raises:
        ValueError, ModuleNotFoundError, OSError: if the report cannot be written, see `write_report`.
    """
    from mobileclip.evaluation.report import write_plots, write_report

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    write_report(page, models)
    return (page, *write_plots(folder / "plots", models))
