"""Evaluates models and classifiers during training, without any effect on the training."""

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
from mobileclip.inference.bulk_encoding import view_of
from mobileclip.inference.encoding import encode_ahead
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

    The callback returns every metric of every data set as `NAME/METRIC`, such as `vtab-pets/acc1` or
    `flickr30k/mean_recall@1`, and the number of skipped samples as `NAME/num_skipped`. Each call of the
    callback decodes the images and encodes the prompts again. After a call, the model's weights, the modes of its
    modules and torch's random state are as before, so that runs with and without the callback train bit-identical
    weights.

    `evaluation_hook` checks the data before the training starts. The callback logs later errors, such as a shard that
    was damaged during the training, omits the metrics of the failed data set for the current step, and lets the
    training continue.

    Args:
        benchmarks: `Benchmark` objects, paths or URLs that `open_benchmark` accepts; at least one, with distinct names.
        batch_size: number of images or texts per batch.
        num_threads: number of threads that decode images while the model runs; by default one per core, at most eight.
        allow_missing: whether to allow missing shards in the data sets that this function opens; see `Benchmark`.
        rows: options for reading rows of `.jsonl` files and tables, for the data sets that this function opens.

    Raises:
        ValueError: if there is no data set, two data sets have the same name, or a data set cannot be evaluated: its
            files are missing or malformed, a shard is missing or truncated, or no sample is usable.
        OSError: if a store cannot be reached.
    """
    opened = tuple(
        one if isinstance(one, Benchmark) else open_benchmark(one, allow_missing=allow_missing, rows=rows)
        for one in benchmarks
    )
    if not opened:
        raise ValueError("there are no data sets to evaluate on; pass at least one")
    require_different_names(benchmark.name for benchmark in opened)
    for benchmark in opened:
        _require_data(benchmark)

    evaluations = [
        (benchmark.name, partial(_measured, benchmark, batch_size=batch_size, num_threads=num_threads))
        for benchmark in opened
    ]
    return hook_of(evaluations, DualEncoder)


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
    evaluations: Sequence[tuple[str, Callable[[ModelType], Mapping[str, float]]]], kind: type[ModelType]
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a training callback that runs several evaluations and restores torch's random state.

    If an evaluation fails, the callback logs the error and omits the metrics of the failed evaluation.

    Args:
        evaluations: pairs of a data set's name and a function that evaluates a model and returns metrics by name; the
            callback returns the metrics as `NAME/METRIC`.
        kind: class of the models that the functions accept.
    """

    def evaluate(model: nn.Module, num_steps: int) -> Mapping[str, float]:
        assert isinstance(model, kind), f"expected a model of type {kind.__name__}, got {type(model).__name__}"
        metrics: dict[str, float] = {}
        for name, evaluation in evaluations:
            with _same_random_numbers(model):
                values = _unless_it_fails(partial(evaluation, model), name, num_steps)
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        return metrics

    return evaluate


def _unless_it_fails(measure: Callable[[], Mapping[str, float]], name: str, num_steps: int) -> Mapping[str, float]:
    """Return the metrics, or an empty mapping if the evaluation fails, so that a failure cannot stop a training run.

    Args:
        measure: function that returns the metrics, called once.
        name: name of the data set, for the log.
        num_steps: number of completed training steps.
    """
    try:
        return measure()
    except Exception as error:
        logger.warning(
            "%s could not be evaluated after %d steps; training continues: %s: %s",
            name,
            num_steps,
            type(error).__name__,
            error,
            exc_info=not isinstance(error, (ValueError, OSError)),
        )
        return {}


def _require_data(benchmark: Benchmark) -> None:
    """Raise an error if a data set cannot be evaluated, without reading all of its data."""
    require_metric(benchmark)
    report = SkipReport(log=False)
    if next(benchmark.samples(report), None) is None:
        raise ValueError(f"no sample of {benchmark.name} is usable: {report}")
    if not benchmark.allow_missing:
        benchmark.num_samples()


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Restore torch's random state after the context; a third-party block may draw random numbers in any call."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@attrs.frozen(kw_only=True)
class ClassifierEvaluation:
    """Result of a classifier's evaluation: top-1 and top-5 accuracy, and skipped samples.

    Args:
        result: accuracies as fractions from 0 to 1.
        report: number of samples read, and skipped samples by reason.
    """

    result: ClassificationResult
    report: SkipReport


def evaluate_classifier(
    model: Classifier, data: Shards, *, batch_size: int = 64, num_threads: int | None = None
) -> ClassifierEvaluation:
    """Return the accuracy of a classifier on labelled images, with the classifier's own preprocessing.

    Match labels by class name if both the model and the data have class names; otherwise, match labels by number.

    Args:
        model: classifier in evaluation mode; the function runs a folded copy.
        data: shards with labels, or a folder with one folder of images per class; see
            `mobileclip.datasets.labelled.open_class_data`.
        batch_size: number of images per batch.
        num_threads: number of threads that decode images while the model runs; by default one per core, at most eight.

    Raises:
        ValueError: if the data does not exist, the data has classes that the model lacks, no image is usable, or the
            model is in training mode.
        OSError: if the data cannot be read.
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
            raise ValueError("the classifier returns NaN or infinite logits; check the weights of the classifier")
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
        raise ValueError(f"no image of {name} is usable: {report}")
    labels, *found_hits = map(torch.stack, zip(*rows, strict=True))
    hits = Hits(**dict(zip(attrs.fields_dict(Hits), found_hits, strict=True)))
    result = mean_hits(hits, labels, num_classes=model.head.out_features)
    return ClassifierEvaluation(result=result, report=report)


def classifier_hook(
    data: Sequence[Shards], *, batch_size: int = 64, num_threads: int | None = None
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a callback for `mobileclip.training.train` that evaluates a classifier.

    The callback returns `NAME/acc1`, `NAME/mean_per_class_recall`, `NAME/num_skipped` and, with at least five classes,
    `NAME/acc5` for every data set. The callback restores the model and torch's random state. If an evaluation fails,
    the callback logs the error and the training continues.

    Args:
        data: locations of labelled images, see `evaluate_classifier`.
        batch_size: number of images per batch.
        num_threads: number of threads that decode images; see `evaluate_classifier`.

    Raises:
        ValueError: if a location contains no labelled images.
        OSError: if the data cannot be read.
    """
    evaluations = [
        (
            name,
            partial(_measured_classifier, open_class_data(place), name, batch_size=batch_size, num_threads=num_threads),
        )
        for name, place in zip(map(_shown, data), data, strict=True)
    ]
    return hook_of(evaluations, Classifier)


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
    """Return the model's class index for each class of the data."""
    num_classes = model.head.out_features
    if data.class_names and model.class_names:
        places = {name: number for number, name in enumerate(model.class_names)}
        unknown = [name for name in data.class_names if name not in places]
        if unknown:
            raise ValueError(f"the data has the class {unknown[0][:80]!r}, but the classifier has no such class")
        return torch.tensor([places[name] for name in data.class_names])
    if data.class_names and len(data.class_names) != num_classes:
        raise ValueError(
            f"the data has {len(data.class_names)} classes, but the classifier has {num_classes} unnamed classes; "
            "the class numbers cannot be matched"
        )
    return torch.arange(num_classes)
