"""Evaluation of a model while it trains, which leaves no trace in the training; and of classifiers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data import ImageTransform
from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.data.shards.files import Shards, parse_each
from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.datasets.labelled import ClassData, LabelledSample, LabelParser, open_class_data
from mobileclip.datasets.sources import RowOptions
from mobileclip.datasets.sources.opening import name_of
from mobileclip.encoders import Classifier, DualEncoder
from mobileclip.evaluation.data import Benchmark, open_benchmark, require_different_names
from mobileclip.evaluation.features import Session
from mobileclip.evaluation.metrics import ClassificationResult, Hits, mean_hits
from mobileclip.evaluation.results import MAIN_METRIC
from mobileclip.evaluation.tasks.zero_shot import evaluate_benchmark, require_metric
from mobileclip.inference.encoding import encode_ahead
from mobileclip.inference.pictures import view_of
from mobileclip.reparam import reparameterize
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

ModelType = TypeVar("ModelType", bound=nn.Module)


def evaluation_hook(
    benchmarks: Sequence[Benchmark | str | os.PathLike[str]],
    *,
    batch_size: int = 64,
    num_threads: int | None = None,
    allow_missing: bool = False,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a callback for `mobileclip.training.train` that evaluates an image-text model.

    It gives every metric of every data set as `NAME/METRIC`, such as `vtab-pets/acc1` or `flickr30k/mean_recall@1`, and
    `NAME/num_skipped`, how many samples were left out. Pictures are decoded and prompts are encoded each time. The
    model's weights and modes, and torch's random numbers, are afterwards as they were: a run that is looked at has the
    same weights, to the bit, as one that is not.

    What is wrong with the data is said here, before the training starts. What goes wrong later, such as a shard that is
    damaged meanwhile, is logged; its data set is then missing from that step's numbers, and the training goes on.

    Args:
        benchmarks: data sets of any kind that `open_benchmark` takes: opened ones, paths, or URLs. At least one;
            each with a name of its own.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        allow_missing: allow missing of those that are opened here, see `Benchmark`.
        rows: of those that are opened here, how rows of `.jsonl` files and of tables are read.

    Raises:
        ValueError: if there is no data set, two have one name, or one cannot be evaluated: its files are missing or
            malformed, a shard is missing or breaks off, or not one sample can be used.
        OSError: if a store cannot be reached.
    """
    opened = tuple(
        one if isinstance(one, Benchmark) else open_benchmark(one, allow_missing=allow_missing, rows=rows)
        for one in benchmarks
    )
    if not opened:
        raise ValueError("there is no data set to evaluate on; give at least one")
    require_different_names(benchmark.name for benchmark in opened)
    for benchmark in opened:
        _require_data(benchmark)

    measures = [
        (benchmark.name, partial(_measured, benchmark, batch_size=batch_size, num_threads=num_threads))
        for benchmark in opened
    ]
    return hook_of(measures, DualEncoder)


def _measured(
    benchmark: Benchmark, model: DualEncoder, *, batch_size: int, num_threads: int | None
) -> dict[str, float]:
    session = Session(
        model,
        batch_size=batch_size,
        num_threads=num_threads,
        show_progress=False,
    )
    evaluation = evaluate_benchmark(session, benchmark)
    values = {name: value for name, value in evaluation.metrics.items() if name != MAIN_METRIC}
    return {**values, "num_skipped": evaluation.report.num_skipped}


def hook_of(
    measures: Sequence[tuple[str, Callable[[ModelType], Mapping[str, float]]]], kind: type[ModelType]
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a training callback of several measures, which leaves torch's random numbers as they were.

    A measure that fails is logged, and its numbers are missing.

    Args:
        measures: name of each data set, and what gives its metrics by name; the hook gives them as `NAME/METRIC`.
        kind: of model that they measure.
    """

    def evaluate(model: nn.Module, num_steps: int) -> Mapping[str, float]:
        assert isinstance(model, kind), f"the run trains a {type(model).__name__}, and the hook is for {kind.__name__}"
        metrics: dict[str, float] = {}
        for name, measure in measures:
            with _same_random_numbers(model):
                values = _unless_it_fails(partial(measure, model), name, num_steps)
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        return metrics

    return evaluate


def _unless_it_fails(measure: Callable[[], Mapping[str, float]], name: str, num_steps: int) -> Mapping[str, float]:
    """Return the metrics, or none: days of training are worth more than one evaluation, whatever is wrong with it.

    Args:
        measure: called once.
        name: name of the data set, for the log.
        num_steps: steps of the training that are done.
    """
    try:
        return measure()
    except Exception as error:
        logger.warning(
            "%s could not be evaluated after %d steps, and the training goes on: %s: %s",
            name,
            num_steps,
            type(error).__name__,
            error,
            exc_info=not isinstance(error, (ValueError, OSError)),
        )
        return {}


def _require_data(benchmark: Benchmark) -> None:
    """Refuse a data set that cannot be evaluated, as far as that shows without reading all of it."""
    require_metric(benchmark)
    report = SkipReport(log=False)
    if next(benchmark.samples(report), None) is None:
        raise ValueError(f"not one sample of {benchmark.name} can be used: {report}")
    if not benchmark.allow_missing:
        benchmark.num_samples()


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Give torch's random numbers back as they were: a block of someone else's may draw some whenever it is called."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@attrs.frozen(kw_only=True)
class ClassifierEvaluation:
    """The result of evaluating a classifier: top-1, top-5 and what was skipped.

    Args:
        result: accuracies, as fractions of one.
        report: what was read and what was left out.
    """

    result: ClassificationResult
    report: SkipReport


def evaluate_classifier(
    model: Classifier, data: Shards, *, batch_size: int = 64, num_threads: int | None = None
) -> ClassifierEvaluation:
    """Return how often a classifier is right on labelled images, preprocessed as it expects.

    Where both say what classes are called, labels are compared by names, and by numbers otherwise.

    Args:
        model: in evaluation mode; a folded copy computes.
        data: shards with labels, or a folder with a folder of images for every class; see
            `mobileclip.datasets.labelled.open_class_data`.
        batch_size: images classified at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.

    Raises:
        ValueError: if there is no such data, it has classes that the model has not, no image can be used, or the model
            is in training mode.
        OSError: if it cannot be read.
    """
    return _evaluated(model, open_class_data(data), _shown(data), batch_size=batch_size, num_threads=num_threads)


def _evaluated(
    model: Classifier, data: ClassData, name: str, *, batch_size: int, num_threads: int | None
) -> ClassifierEvaluation:
    numbers, report = _numbers(model, data), SkipReport()
    parser = LabelParser(num_classes=len(numbers), class_names=data.class_names or model.class_names)
    transform = ImageTransform(model.spec.image.input)
    folded, device = reparameterize(model), next(model.parameters()).device

    def decode(sample: LabelledSample) -> list[tuple[int, Tensor]]:
        return [(sample.label, transform.normalize(view_of(sample.image, transform)))]

    def classify(batch: list[tuple[int, Tensor]]) -> Iterable[tuple[Tensor, ...]]:
        labels = numbers[[label for label, _ in batch]]
        logits = folded(torch.stack([pixels for _, pixels in batch]).to(device)).float().cpu()
        if not bool(logits.isfinite().all()):
            raise ValueError("the classifier gives NaN or infinite logits; check its weights")
        return zip(labels, *attrs.astuple(Hits.of(logits, labels)), strict=True)

    raws = (raw for name in data.reader.names for raw in data.reader.read(name, report.add, SAMPLE_LIMITS))
    rows = []
    with torch.inference_mode():
        samples = parse_each(raws, parser, report.add)
        for sample, found in encode_ahead(samples, decode, classify, batch_size=batch_size, num_threads=num_threads):
            if isinstance(found, BadSampleError):
                report.add(found.skip(key=sample.key, shard=""))
            else:
                report.num_read += 1
                rows += [row for row in found if row is not None]
    if not rows:
        raise ValueError(f"no image of {name} can be classified: {report}")
    labels, *found_hits = map(torch.stack, zip(*rows, strict=True))
    hits = Hits(**dict(zip(attrs.fields_dict(Hits), found_hits, strict=True)))
    result = mean_hits(hits, labels, num_classes=model.head.out_features)
    return ClassifierEvaluation(result=result, report=report)


def classifier_hook(
    data: Sequence[Shards], *, batch_size: int = 64, num_threads: int | None = None
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a callback for `mobileclip.training.train` that evaluates a classifier.

    It gives `NAME/acc1`, `NAME/mean_per_class_recall`, where there are at least five classes `NAME/acc5`, and
    `NAME/num_skipped` of every data set. The model and torch's random numbers are afterwards as they were. What goes
    wrong is logged, and the training goes on.

    Args:
        data: places of labelled images, see `evaluate_classifier`.
        batch_size: images classified at once.
        num_threads: see `evaluate_classifier`.

    Raises:
        ValueError: if there is no such data.
        OSError: if it cannot be read.
    """
    measures = [
        (
            name,
            partial(_measured_classifier, open_class_data(place), name, batch_size=batch_size, num_threads=num_threads),
        )
        for name, place in zip(map(_shown, data), data, strict=True)
    ]
    return hook_of(measures, Classifier)


def _measured_classifier(
    data: ClassData, name: str, model: Classifier, *, batch_size: int, num_threads: int | None
) -> dict[str, float]:
    found = _evaluated(model, data, name, batch_size=batch_size, num_threads=num_threads)
    result = found.result
    values = {"acc1": result.top1, "mean_per_class_recall": result.mean_per_class}
    if result.num_classes >= 5:
        values["acc5"] = result.top5
    return {**values, "num_skipped": found.report.num_skipped}


def _shown(data: Shards) -> str:
    first = data if isinstance(data, (str, os.PathLike)) else data[0]
    return name_of(os.fspath(first))


def _numbers(model: Classifier, data: ClassData) -> Tensor:
    """Return the model's number of each class of the data."""
    num_classes = model.head.out_features
    if data.class_names and model.class_names:
        places = {name: number for number, name in enumerate(model.class_names)}
        unknown = [name for name in data.class_names if name not in places]
        if unknown:
            raise ValueError(f"the data has the class {unknown[0][:80]!r}, which the classifier has not")
        return torch.tensor([places[name] for name in data.class_names])
    if data.class_names and len(data.class_names) != num_classes:
        raise ValueError(
            f"the data has {len(data.class_names)} classes and the classifier {num_classes} without names, so that "
            "their numbers are of other classes"
        )
    return torch.arange(num_classes)
