"""Several models on several data sets: what was encoded is not encoded again, and what fails is named at the end."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import storage
from mobileclip.evaluation.benchmark import hash_of, require_different_names
from mobileclip.evaluation.candidates import Candidate, candidate_device, open_candidate, require_candidates
from mobileclip.evaluation.encoding import Latency, measure_latency
from mobileclip.evaluation.metrics.outcomes import Outcomes
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.session import Session, origin
from mobileclip.evaluation.spec import OWN, EvaluationSpec
from mobileclip.evaluation.suite import SUITE
from mobileclip.evaluation.tasks.catalogue import find_task, suite_tasks
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Pace, duration
from mobileclip.strict import parse_json, split_lines

if TYPE_CHECKING:
    from rich.console import Console

# Holding it takes milliseconds.
_WAIT_SECONDS = 120.0


@attrs.frozen(kw_only=True)
class Record:
    """A line of `results.jsonl`: a result with the model and the reading that it is of.

    Args:
        result: the metrics.
        left_out: how many samples could not be used, by reason.
        absent_classes: names of classes without an image.
        reading: how pictures and texts were read: size, filter, context length, precision, and a hash of the templates.
        evaluated: hashes of the model and of the data, when its features were made, where, and by which version.
        interval: where the true main metric lies with 95 % confidence, as fractions of one.
    """

    result: DatasetResult
    left_out: Mapping[str, int]
    absent_classes: tuple[str, ...]
    reading: Mapping[str, Any]
    evaluated: Mapping[str, str]
    interval: tuple[float, float]

    @classmethod
    def of(cls, evaluation: Evaluation, *, reading: Mapping[str, Any], evaluated: Mapping[str, str]) -> Record:
        """Return the record of an evaluation."""
        found = evaluation.outcomes.interval
        return cls(
            result=evaluation.result,
            left_out=dict(evaluation.report.counts.most_common()),
            absent_classes=evaluation.absent_classes,
            reading=reading,
            evaluated=evaluated,
            interval=(found.low, found.high),
        )


def add_record(path: Path, record: Record, *, model: str) -> None:
    """Put a record at the end of a file, also while other processes do; it replaces one of the same reading.

    Args:
        path: the file of one model's weights; see `read_results`.
        record: of one data set.
        model: what tables call it.

    Raises:
        OSError: if it cannot be written; the file before is then still there.
        ValueError: if a line is no JSON, or others hold the file for minutes.
    """
    values = {name: value for name, value in attrs.asdict(record.result).items() if value is not None}
    values |= {
        name: getattr(record, name) for name in ("left_out", "absent_classes", "reading", "evaluated", "interval")
    }
    # As CLIP_benchmark names them, whose tables can so be made of lines of ours.
    values |= {"model": model, "pretrained": record.evaluated["weights_sha256"]}
    with storage.exclusive(path.parent, wait_seconds=_WAIT_SECONDS):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = [line for line in split_lines(text) if line.strip() and not _is_replaced(parse_json(line), record)]
        storage.write_text(path, "".join(f"{line}\n" for line in (*kept, json.dumps(values, ensure_ascii=False))))


def _is_replaced(line: Any, record: Record) -> bool:
    """Return whether a line is of the same data set and reading."""
    if not isinstance(line, dict):
        raise ValueError(f"a line is {str(line)[:60]!r}, expected an object with key, dataset and metrics")
    return bool(line.get("key") == record.result.key and line.get("reading") == record.reading)


RESULTS = "results.jsonl"

_NUM_IMAGES = {entry.key: entry.num_images for entry in SUITE}
_NOT_A_NAME = re.compile(r"[^\w.+-]+")


@attrs.frozen(kw_only=True)
class Failure:
    """A data set, or a model, that could not be evaluated.

    Args:
        model: its name, or what was typed.
        task: the data set; empty where the model itself failed.
        message: why, for a person.
    """

    model: str
    task: str
    message: str


@attrs.frozen(kw_only=True, eq=False)
class ModelRun:
    """The results and failures of one model in a run.

    Args:
        name: of the model.
        published: the published model that it can be compared with.
        weights_sha256: hash of its weights.
        num_parameters: of both towers.
        records: by key of the data set.
        path: the file of the records.
        latency: of an image and a text, where it was taken.
        outcomes: of the main metrics image by image, by key of the data set.
    """

    name: str
    published: str | None
    weights_sha256: str
    num_parameters: int
    records: dict[str, Record]
    path: Path
    latency: Latency | None = None
    outcomes: Mapping[str, Outcomes] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """The results of a run, model by model.

    Args:
        models: those that could be opened, in order.
        failures: what could not be evaluated.
    """

    models: tuple[ModelRun, ...]
    failures: tuple[Failure, ...]


def evaluate_models(
    models: Sequence[str | Candidate],
    spec: EvaluationSpec,
    *,
    for_report: bool = False,
    console: Console | None = None,
) -> Run:
    """Evaluate models one after another; a data set that fails is named in the end and stops nothing.

    Args:
        models: as `open_candidate` takes them, or candidates.
        spec: on what, and how.
        for_report: whether to measure how long an image and a text take.
        console: where to show what is going on; none shows nothing.

    Raises:
        ValueError: if there is no model; if a model, a data set or a device is unknown or missing, two have one name,
            or a data set on this machine that was asked for by itself cannot be opened: nothing is computed then.
        OSError: if a file is missing, or results cannot be written.
    """
    if not models:
        raise ValueError("there is no model to evaluate; give a name such as mobileclip_s2, or a file of weights")
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
    runs: list[ModelRun] = []
    failures: list[Failure] = []
    choices = [(resized, text) for resized in spec.interpolation or (None,) for text in spec.text_model or (OWN,)]
    # A candidate comes with its preprocessing and its towers.
    opened = [(one, *own) for one in models for own in (choices if isinstance(one, str) else ((None, OWN),))]
    for model, interpolation, text_model in opened:
        try:
            candidate = (
                model
                if isinstance(model, Candidate)
                else open_candidate(
                    model,
                    device=spec.device,
                    precision=spec.precision,
                    image_size=spec.image_size,
                    context_length=spec.context_length,
                    interpolation=interpolation,
                    trust=spec.trust,
                    text_model=None if text_model == OWN else text_model,
                )
            )
        except (ValueError, OSError, ImportError) as error:
            raise_machine_fault(error)
            failures.append(Failure(model=str(model), task="", message=str(error)))
            continue
        evaluator = _Evaluator(candidate, spec, for_report=for_report, console=console)
        runs.append(evaluator.run(tasks))
        failures += evaluator.failures
        del candidate, evaluator
    return Run(models=tuple(runs), failures=tuple(failures))


def _tasks(spec: EvaluationSpec) -> tuple[FoundTask, ...]:
    if not spec.datasets:
        return suite_tasks(spec.suite, spec.data)
    tasks = tuple(find_task(name, spec.data) for name in spec.datasets)
    require_different_names(task.key for task in tasks)
    return tasks


def _require(tasks: Sequence[FoundTask], spec: EvaluationSpec) -> None:
    """Refuse, before any work, data on this machine that cannot be opened.

    Of a suite, a data set that cannot be opened is named in the end, as one that cannot be read.
    """
    for task in tasks:
        if spec.datasets and not storage.is_remote(task.path):
            task.open(spec.task_options)


class _Evaluator:
    """One model."""

    def __init__(
        self, candidate: Candidate, spec: EvaluationSpec, *, for_report: bool, console: Console | None
    ) -> None:
        self.candidate, self.spec, self.console, self.for_report = candidate, spec, console, for_report
        self.failures: list[Failure] = []
        # Of an image, by the seconds of data sets that are encoded here and whose size is known.
        self._seconds, self._pace = 0.0, Pace(0.0)
        self.outcomes: dict[str, Outcomes] = {}
        folder = _NOT_A_NAME.sub("-", candidate.name).strip("-") or "model"
        self.path = spec.output / f"{folder}-{candidate.weights_sha256[:8]}" / RESULTS
        self.session = Session.of(
            candidate,
            batch_size=spec.batch_size,
            num_threads=spec.num_threads,
            show_progress=console is not None,
            cache=spec.output / "features" if spec.cache else None,
        )

    def run(self, tasks: Sequence[FoundTask]) -> ModelRun:
        """Return the results of the tasks."""
        candidate = self.candidate
        records: dict[str, Record] = {}
        for number, task in enumerate(tasks, 1):
            self._say(f"[{number}/{len(tasks)}] {candidate.name} on {task.name}{self._left(tasks[number - 1 :])}")
            try:
                found = self._records(task)
                for record in found:
                    add_record(self.path, record, model=candidate.name)
            except (ValueError, OSError, ImportError) as error:
                raise_machine_fault(error)
                self.failures.append(Failure(model=candidate.name, task=task.name, message=str(error)))
                self._say(f"  failed: {error}")
                continue
            records |= {record.result.key: record for record in found}
            self._say(f"  {_spoken(found[0])}")
        return ModelRun(
            name=candidate.name,
            published=candidate.published,
            weights_sha256=candidate.weights_sha256,
            num_parameters=candidate.num_parameters,
            records=records,
            path=self.path,
            outcomes=self.outcomes,
            latency=measure_latency(candidate.clip) if self.for_report else None,
        )

    def _records(self, found: FoundTask) -> list[Record]:
        """Return the results on a task, which is open for as long as it is evaluated and no longer."""
        started = time.monotonic()
        task = found.open(self.spec.task_options)
        features = task.features(self.session)
        evaluation = task.score(features)
        if found.key in _NUM_IMAGES and not features.is_kept:
            self._seconds += time.monotonic() - started
            self._pace.advance(_NUM_IMAGES[found.key], self._seconds)
        rows = (evaluation, *evaluation.parts)
        self.outcomes |= {row.result.key: row.outcomes for row in rows}
        templates = hash_of(task.templates)[:8] if task.templates else None
        evaluated = {
            "model": self.candidate.fingerprint,
            "weights_sha256": self.candidate.weights_sha256,
            "data": features.header.get("data", ""),
            **{name: features.header.get(name, value) for name, value in origin(self.candidate.clip).items()},
        }
        reading = {**self.candidate.reading, "templates": templates}
        return [Record.of(row, reading=reading, evaluated=evaluated) for row in rows]

    def _left(self, tasks: Sequence[FoundTask]) -> str:
        """Return what to say of the time that tasks will take; nothing where nobody knows."""
        sizes = [_NUM_IMAGES.get(task.key) for task in tasks]
        seconds = self._pace.seconds(sum(filter(None, sizes)))
        return "" if seconds is None else f", {'at least' if None in sizes else 'about'} {duration(seconds)} left"

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)


def _spoken(record: Record) -> str:
    result = record.result
    parts = [f"{100 * result.main_metric:.2f} %"]
    low, high = (100 * end for end in record.interval)
    parts.append(f"({low:.1f} to {high:.1f})")
    if result.num_images is not None:
        parts.append(f"of {result.num_images:,}")
    if record.left_out:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in record.left_out.items())
        parts.append(f"(left out: {left_out})")
    return " ".join(parts)
