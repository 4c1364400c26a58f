"""Several models on several data sets: what is known is not computed again, and what fails is named at the end."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.skips import SkipReport
from mobileclip.data.sources import LineAccess
from mobileclip.evaluation.cache import FeatureCache, fingerprint, hash_of, unchanging
from mobileclip.evaluation.candidates import Candidate, open_candidate, require_candidates
from mobileclip.evaluation.datasets.benchmark import Benchmark, open_benchmark, require_different_names
from mobileclip.evaluation.encoding.batch_size import find_batch_size
from mobileclip.evaluation.encoding.embedding import Tokenize
from mobileclip.evaluation.encoding.features import Features, Transform, extract_features
from mobileclip.evaluation.encoding.inference import KnownTexts
from mobileclip.evaluation.encoding.timing import measure_latency
from mobileclip.evaluation.metrics.outcomes import Outcomes, read_outcomes, write_outcomes
from mobileclip.evaluation.pace import Pace
from mobileclip.evaluation.records import Record, add_record, read_records
from mobileclip.evaluation.report.values import Latency
from mobileclip.evaluation.tasks.aro.tagging import SpacyTagger
from mobileclip.evaluation.tasks.catalogue import ORDERS, SuiteName, Task, find_task, suite_tasks
from mobileclip.evaluation.tasks.zero_shot.evaluate import Evaluation
from mobileclip.evaluation.tasks.zero_shot.scoring import require_metric, score
from mobileclip.extras import VERSION
from mobileclip.hardware.devices import AUTO, pick_device
from mobileclip.hardware.precision import WidePrecision
from mobileclip.strict import strict

if TYPE_CHECKING:
    from rich.console import Console

    from mobileclip.evaluation.report import DatasetDetails
    from mobileclip.evaluation.tasks.aro import Aro


class _Options(TypedDict):
    """What every evaluation takes."""

    transform: Transform
    tokenize: Tokenize
    batch_size: int
    num_threads: int | None
    show_progress: bool
    known_texts: KnownTexts


RESULTS = "results.jsonl"

_NOT_A_NAME = re.compile(r"[^\w.+-]+")


@attrs.frozen(kw_only=True, field_transformer=strict)
class EvaluationSpec:
    """Which models are evaluated on what.

    Args:
        suite: `quick` for six small data sets, `imagenet` for it and its relatives, `retrieval` for Flickr30k and COCO,
            `aro` for compositional understanding, `full` for the 38 whose mean the papers report.
        datasets: these instead of a suite: keys such as vtab/pets, or places of data sets: folders of classes or of
            images with captions, JSON lines, shards, folders and addresses in the public layout.
        data: folder or address that holds the data sets in folders such as wds_vtab-pets_test, or a pattern with {name}
            in it; without it they are read from the hub, where they are published.
        output: folder of every model's results.jsonl and embeddings; a run that was stopped goes on from there.
        device: where models compute, such as cuda:1, mps or cpu; `auto` is the best device there is.
        precision: of the weights.
        image_size: side of the images, in pixels, where not a model's own; open_clip's models have theirs.
        context_length: ids per text, where fewer than a model's own; see `mobileclip.encoders.load_model`.
        batch_size: images encoded at once; by default as many as fit into memory.
        num_threads: threads that read images beside the model; by default one per core, eight at most.
        cache: whether embeddings are kept, so that a run with other prompts or more details need not look at images.
        allow_missing: whether to go on where a shard is missing; the result says what is left out.
        tagger: spaCy's model that finds nouns and adjectives for ARO's orders.
        lines: what the lines of a `.jsonl` file among the data sets may name.
        stores: how long stores are waited for. Specs that differ in these alone are equal.

    Examples:
        >>> EvaluationSpec(datasets=("vtab/pets",)) == EvaluationSpec(datasets=("vtab/pets",), suite="quick")
        True
    """

    suite: SuiteName = "quick"
    datasets: tuple[str, ...] = ()
    data: str | None = None
    output: Path = Path("outputs/evaluation")
    device: str = AUTO
    precision: WidePrecision = "float32"
    image_size: int | None = None
    context_length: int | None = None
    batch_size: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    cache: bool = True
    allow_missing: bool = False
    tagger: str = "en_core_web_sm"
    lines: LineAccess = attrs.field(factory=LineAccess)
    stores: storage.StoreLimits = attrs.field(factory=storage.StoreLimits, eq=False)


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
    """What came out of one model.

    Args:
        name: of the model.
        published: the published model that it can be compared with.
        weights_sha256: hash of its weights.
        num_parameters: of both towers.
        records: by key of the data set.
        path: the file of the records.
        latency: of an image and a text, where it was taken.
        outcomes: of the main metrics image by image, by key of the data set, as far as they are known.
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
    """What came out of all models.

    Args:
        models: those that could be opened, in order.
        failures: what could not be evaluated.
        details: mistakes and examples, where they were asked for.
    """

    models: tuple[ModelRun, ...]
    failures: tuple[Failure, ...]
    details: tuple[DatasetDetails, ...] = ()


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
        for_report: whether mistakes and examples of every data set are collected too, and times taken.
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
    require_candidates([model for model in models if isinstance(model, str)])
    tasks = _tasks(spec)
    device = str(pick_device(spec.device))
    storage.require_output(spec.output / "model" / RESULTS, overwrite=True)
    opened = _opened(tasks, spec)
    runs, failures, shown = [], [], []
    for model in models:
        try:
            candidate = (
                model
                if isinstance(model, Candidate)
                else open_candidate(
                    model,
                    device=device,
                    precision=spec.precision,
                    image_size=spec.image_size,
                    context_length=spec.context_length,
                )
            )
        except (ValueError, OSError, ImportError) as error:
            failures.append(Failure(model=str(model), task="", message=str(error)))
            continue
        evaluator = _Evaluator(candidate, spec, opened, for_report=for_report, console=console)
        runs.append(evaluator.run(tasks))
        failures += evaluator.failures
        shown += evaluator.details
        del candidate, evaluator
    return Run(models=tuple(runs), failures=tuple(failures), details=tuple(shown))


def _tasks(spec: EvaluationSpec) -> tuple[Task, ...]:
    if not spec.datasets:
        return suite_tasks(spec.suite, spec.data)
    tasks = tuple(find_task(name, spec.data) for name in spec.datasets)
    require_different_names(task.key for task in tasks)
    return tasks


def _opened(tasks: Sequence[Task], spec: EvaluationSpec) -> dict[str, Benchmark]:
    """Return the data sets that were asked for by themselves and are on this machine, by key, before any work."""
    if any(task.key in ORDERS for task in tasks):
        SpacyTagger(spec.tagger)
    if not spec.datasets:
        return {}
    near = [task for task in tasks if task.kind == "benchmark" and not storage.is_remote(task.path)]
    opened = {task.key: _open(task, spec) for task in near}
    for benchmark in opened.values():
        require_metric(benchmark)
    return opened


def _open(task: Task, spec: EvaluationSpec) -> Benchmark:
    return open_benchmark(task.path, allow_missing=spec.allow_missing, lines=spec.lines)


class _Evaluator:
    """One model."""

    def __init__(
        self,
        candidate: Candidate,
        spec: EvaluationSpec,
        opened: Mapping[str, Benchmark],
        *,
        for_report: bool,
        console: Console | None,
    ) -> None:
        self.candidate, self.spec, self.opened, self.console = candidate, spec, opened, console
        self.failures: list[Failure] = []
        self.details: list[DatasetDetails] = []
        self.known_texts: KnownTexts = {}
        self.for_report = for_report
        self.batch_size = spec.batch_size or find_batch_size(candidate)
        folder = _NOT_A_NAME.sub("-", candidate.name).strip("-") or "model"
        self.path = spec.output / f"{folder}-{candidate.weights_sha256[:8]}" / RESULTS
        self.cache = FeatureCache(folder=spec.output / "features") if spec.cache else None

    def run(self, tasks: Sequence[Task]) -> ModelRun:
        """Return the results of the tasks, those of earlier runs included."""
        records = read_records(self.path)
        wanted, pace = {}, Pace()
        for number, task in enumerate(tasks, 1):
            left = pace.left([one.key for one in tasks[number - 1 :]])
            self._say(f"[{number}/{len(tasks)}] {self.candidate.name} on {task.name}{left and f', {left}'}")
            before, started = records.get(task.key), time.monotonic()
            try:
                record = self._record(task, before)
                if record is not before:
                    add_record(self.path, record)
            except (ValueError, OSError, ImportError) as error:
                self.failures.append(Failure(model=self.candidate.name, task=task.name, message=str(error)))
                self._say(f"  failed: {error}")
                continue
            wanted[record.result.key] = records[record.result.key] = record
            if record is not before:
                pace.add(task.key, time.monotonic() - started)
            self._say(f"  {_spoken(record)}")
        return ModelRun(
            name=self.candidate.name,
            published=self.candidate.published,
            weights_sha256=self.candidate.weights_sha256,
            num_parameters=self.candidate.num_parameters,
            records=wanted,
            path=self.path,
            outcomes=self._outcomes(wanted),
            latency=measure_latency(self.candidate) if self.for_report else None,
        )

    def _outcomes(self, records: Mapping[str, Record]) -> dict[str, Outcomes]:
        found = {key: read_outcomes(self.path.parent, key, _mark(record.evaluated)) for key, record in records.items()}
        return {key: outcomes for key, outcomes in found.items() if outcomes is not None}

    def _record(self, task: Task, before: Record | None) -> Record:
        if task.kind == "benchmark":
            benchmark = self.opened.get(task.key)
            if benchmark is None:
                benchmark = _open(task, self.spec)
                require_metric(benchmark)
            texts = hash_of([benchmark.class_names, benchmark.templates])
            with unchanging(benchmark) as content:
                data = hash_of([content, texts])
                if before is not None and before.answers(self.candidate.fingerprint, data) and not self.for_report:
                    return before
                return self._kept(self._benchmark(benchmark, content), data)
        files = self._content(task)
        data = hash_of([task.kind, task.path, self.spec.tagger if task.key.startswith("aro") else "", files])
        if files is not None and before is not None and before.answers(self.candidate.fingerprint, data):
            return before
        return self._kept(self._other(task), data)

    def _kept(self, evaluation: Evaluation, data: str) -> Record:
        evaluated = self._evaluated(data)
        write_outcomes(self.path.parent, evaluation.result.key, _mark(evaluated), evaluation.outcomes)
        return Record.of(evaluation, evaluated)

    def _content(self, task: Task) -> str | None:
        """Return what changes with the files of a task that is no benchmark, or None where nothing says."""
        if task.kind == "order":
            return fingerprint(_open(task, self.spec))
        try:
            found = {name: mark for name, mark in storage.find_files(task.path).items() if not name.startswith(".")}
        except ValueError:  # a web server lists nothing
            return None
        # What is asked lies beside the folder of pictures, of which there may be a hundred thousand files.
        asked = sorted(name for name in found if "/" not in name)
        hashes = storage.content_hashes(storage.join(task.path, name) for name in asked)
        return hash_of([sorted(found.items()), hashes])

    def _benchmark(self, benchmark: Benchmark, content: str) -> Evaluation:
        features, report = self._features(benchmark, content)
        scored = score(benchmark, features, num_skipped=report.num_skipped)
        if self.for_report:
            from mobileclip.evaluation.report import dataset_details

            self.details.append(dataset_details(benchmark, features, model=self.candidate.name))
        return Evaluation(
            result=scored.result, report=report, absent_classes=scored.absent_classes, outcomes=scored.outcomes
        )

    def _features(self, benchmark: Benchmark, content: str) -> tuple[Features, SkipReport]:
        if self.cache is None:
            report = SkipReport()
            return extract_features(self.candidate.model, benchmark, report, **self._options()), report
        return self.cache.features(
            self.candidate,
            benchmark,
            batch_size=self.batch_size,
            num_threads=self.spec.num_threads,
            show_progress=self.console is not None,
            known_texts=self.known_texts,
            content=content,
        )

    def _other(self, task: Task) -> Evaluation:
        """Evaluate what is no data set of the public layout."""
        from mobileclip.evaluation.tasks.winogavil import evaluate_winogavil, open_winogavil

        options = self._options()
        if task.kind == "winogavil":
            return evaluate_winogavil(self.candidate.model, open_winogavil(task.path), **options)
        from mobileclip.evaluation.tasks.aro import evaluate_aro

        return evaluate_aro(self.candidate.model, self._aro(task), **options)

    def _aro(self, task: Task) -> Aro:
        from mobileclip.evaluation.tasks.aro import PARTS, open_aro, order_task

        tagger = SpacyTagger(self.spec.tagger) if task.key.endswith("_order") else None
        if task.kind == "order":
            return order_task(_open(task, self.spec), tagger=tagger)
        part = next(part for part in PARTS if task.key == f"aro/{part}")
        return open_aro(part, task.path, tagger=tagger)

    def _options(self) -> _Options:
        return {
            "transform": self.candidate.transform,
            "tokenize": self.candidate.tokenize,
            "batch_size": self.batch_size,
            "num_threads": self.spec.num_threads,
            "show_progress": self.console is not None,
            "known_texts": self.known_texts,
        }

    def _evaluated(self, data: str) -> dict[str, str]:
        return {
            "model": self.candidate.fingerprint,
            "weights_sha256": self.candidate.weights_sha256,
            "data": data,
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "version": VERSION,
        }

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)


def _mark(evaluated: Mapping[str, str]) -> str:
    """Return what tells one evaluation from another."""
    return hash_of([evaluated.get("model"), evaluated.get("data")])


def _spoken(record: Record) -> str:
    result = record.result
    parts = [f"{100 * result.main_metric:.2f} %"]
    if record.interval is not None:
        low, high = (100 * end for end in record.interval)
        parts.append(f"({low:.1f} to {high:.1f})")
    if result.num_images is not None:
        parts.append(f"of {result.num_images:,}")
    if record.left_out:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in record.left_out.items())
        parts.append(f"(left out: {left_out})")
    return " ".join(parts)
