"""How often a classifier is right: top-1 and top-5 on labelled images, once or between epochs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.data import ImageTransform
from mobileclip.data.samples.sample import SAMPLE_LIMITS
from mobileclip.data.shards.files import Shards, parse_each
from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.datasets.labelled import ClassData, LabelledSample, LabelParser, open_class_data
from mobileclip.datasets.sources.opening import name_of
from mobileclip.encoders import Classifier
from mobileclip.evaluation.hook import hook_of
from mobileclip.evaluation.metrics.classification import ClassificationResult, Hits, mean_hits
from mobileclip.evaluation.metrics.ranking import hit_probability
from mobileclip.inference.encoding import encode_ahead
from mobileclip.inference.pictures import view_of
from mobileclip.reparam import reparameterize


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
        return zip(labels, *_hits(logits, labels), strict=True)

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
    labels, predicted, top1, top5 = map(torch.stack, zip(*rows, strict=True))
    hits = Hits(predicted=predicted, top1=top1, top5=top5)
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
        (name, partial(_measured, open_class_data(place), name, batch_size=batch_size, num_threads=num_threads))
        for name, place in zip(map(_shown, data), data, strict=True)
    ]
    return hook_of(measures, Classifier)


def _measured(
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


def _hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `Hits` holds of every image."""
    if not bool(logits.isfinite().all()):
        raise ValueError("the classifier gives NaN or infinite logits; check its weights")
    relevant = F.one_hot(labels, logits.shape[1]).bool()
    return logits.argmax(dim=1), hit_probability(logits, relevant, 1), hit_probability(logits, relevant, 5)
