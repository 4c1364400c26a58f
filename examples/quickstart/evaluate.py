"""How good a model, or the teachers, are on one split that training never saw, and what they take each picture for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import attrs
import torch
from torch import Tensor

from examples.quickstart.benchmarks import classes_of
from examples.quickstart.emoji import DataSplit
from mobileclip.data import SkipReport, decode_image
from mobileclip.evaluation import (
    Benchmark,
    BenchmarkSample,
    Features,
    RetrievalResult,
    Session,
    evaluate_benchmark,
    retrieval_recall,
    score,
)
from mobileclip.evaluation.metrics.classification import classification_hits
from mobileclip.inference import ensemble_prompts, fill_templates
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.processes import num_cores
from mobileclip.progress import track
from mobileclip.reinforce import TeacherEnsemble
from mobileclip.reinforce.agreement import plain_augmentation, plain_views

_BATCH = 32


@attrs.frozen(kw_only=True)
class Scores:
    """What is reported of one split, in per cent.

    Args:
        top1: pictures whose concept is the best-scored of all.
        top5: pictures whose concept is among the five best.
        text_to_image: captions for which the first picture is one of the concept.
        image_to_text: pictures for which the first caption is one of the concept.
    """

    top1: float
    top5: float
    text_to_image: float
    image_to_text: float


@attrs.frozen(kw_only=True)
class Findings:
    """What was found out about a model.

    Args:
        scores: by split.
        answers: by split and picture's key, the concept that it is taken for.
        top5: the same, whether its concept is among the five best.
    """

    scores: Mapping[str, Scores]
    answers: Mapping[str, Mapping[str, str]]
    top5: Mapping[str, Mapping[str, bool]] = attrs.field(factory=dict)


def evaluate_model(model: ImageTextModel, benchmarks: Mapping[str, Benchmark], splits: Sequence[DataSplit]) -> Findings:
    """Return what a student knows; see `evaluate_teachers`."""
    found, session = {}, _session(model)
    for split in splits:
        benchmark = classes_of(split.name, benchmarks)
        features, report = session.features(benchmark)
        _require_all(benchmark, report)
        found[split.name] = _findings(benchmark, features, model.encode_text, split)
    return _by_split(found)


def _session(model: ImageTextModel) -> Session:
    return Session(model, batch_size=_BATCH)


def evaluate_teachers(
    teachers: TeacherEnsemble, benchmarks: Mapping[str, Benchmark], splits: Sequence[DataSplit]
) -> Findings:
    """Return what the ensemble knows: its similarity is the mean over its members.

    Args:
        teachers: the ensemble.
        benchmarks: see `as_benchmarks`.
        splits: where the captions are.

    Raises:
        ValueError: if a picture cannot be used.
    """
    # Two of the splits have the same classes, and reading their names takes as long as looking at the pictures.
    encode_prompts = cache(teachers.encode_texts)
    found = {}
    for split in splits:
        benchmark, report = classes_of(split.name, benchmarks), SkipReport()
        samples = list(benchmark.samples(report))
        _require_all(benchmark, report)
        features = Features.of(
            keys=tuple(sample.key for sample in samples),
            image=_seen_by_teachers(teachers, samples, title=split.title),
            text=encode_prompts(tuple(fill_templates(benchmark.class_names, benchmark.templates))),
            labels=torch.tensor([sample.label for sample in samples]),
        )
        found[split.name] = _findings(benchmark, features, teachers.encode_texts, split)
    return _by_split(found)


def _seen_by_teachers(teachers: TeacherEnsemble, samples: Sequence[BenchmarkSample], *, title: str) -> Tensor:
    """Return the embeddings of pictures as they are, not augmented."""
    plain = {size: plain_augmentation(size) for size in teachers.image_sizes}

    def encode_images(samples: Sequence[BenchmarkSample]) -> Tensor:
        images = [decode_image(sample.image) for sample in samples]
        pixels = {size: plain_views(images, policy) for size, policy in plain.items()}
        return teachers.encode_images(pixels)

    batches = [samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH)]
    # One thread for a batch and several batches at once: small networks do not fill the cores any other way.
    with ThreadPoolExecutor(num_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        encoded = pool.map(encode_images, batches)
        shown = track(encoded, total=len(batches), title=f"teachers: {title}", unit=f"x {_BATCH} pictures")
        return torch.cat(list(shown))


def evaluate_as_published(model: ImageTextModel, benchmarks: Mapping[str, Benchmark]) -> dict[str, dict[str, float]]:
    """Return the metrics, as fractions of one, of a model on each data set, as `mobileclip eval` finds them.

    Raises:
        ValueError: if a picture cannot be used.
    """
    found, session = {}, _session(model)
    for folder, benchmark in benchmarks.items():
        evaluation = evaluate_benchmark(session, benchmark)
        _require_all(benchmark, evaluation.report)
        found[folder] = dict(evaluation.result.metrics)
    return found


def _by_split(found: Mapping[str, tuple[Scores, Mapping[str, str], Mapping[str, bool]]]) -> Findings:
    return Findings(
        scores={name: scores for name, (scores, _, _) in found.items()},
        answers={name: answers for name, (_, answers, _) in found.items()},
        top5={name: top5 for name, (_, _, top5) in found.items()},
    )


def _findings(
    benchmark: Benchmark, features: Features, encode_texts: Callable[[Sequence[str]], Tensor], split: DataSplit
) -> tuple[Scores, dict[str, str], dict[str, bool]]:
    assert features.labels is not None, "the data set has classes"
    found = score(benchmark, features)
    metrics = found.result.metrics
    recall = _recall_of_concepts(features.image, features.labels, encode_texts, split)
    scores = Scores(
        top1=100 * metrics["acc1"],
        # Among fewer than five classes, each is one of the five best.
        top5=100 * metrics.get("acc5", 1.0),
        text_to_image=100 * recall.text_to_image.at1,
        image_to_text=100 * recall.image_to_text.at1,
    )
    classes = ensemble_prompts(features.text.reshape(len(benchmark.class_names), len(benchmark.templates), -1))
    hits = classification_hits(features.image, classes, features.labels)
    predicted = zip(features.keys, hits.predicted.tolist(), strict=True)
    answers = {key: benchmark.class_names[index] for key, index in predicted}
    # Of a tie, whether that is more likely than not.
    top5 = dict(zip(features.keys, (hits.top5 > 1 / 2).tolist(), strict=True))
    return scores, answers, top5


def _recall_of_concepts(
    image: Tensor, labels: Tensor, encode_texts: Callable[[Sequence[str]], Tensor], split: DataSplit
) -> RetrievalResult:
    """Rank captions and pictures, where all pictures of a concept are right answers to all of its captions.

    Several vendors draw a concept, and their drawings have the same captions: the layout in which data sets are shared
    knows whose picture a caption is, but not that another picture fits it as well.
    """
    samples = list(split.samples())
    captions = dict(zip(split.class_indices(samples), (sample.captions for sample in samples), strict=True))
    texts = [text for group in captions.values() for text in group]
    ids = torch.tensor([index for index, group in captions.items() for _ in group])
    return retrieval_recall(image, encode_texts(texts), image_ids=labels, text_ids=ids)


def _require_all(benchmark: Benchmark, report: SkipReport) -> None:
    if report.num_skipped:
        folder = Path(benchmark.shards[0]).parents[1]
        raise ValueError(
            f"not all pictures of {benchmark.name} can be used: {report}; delete {folder} and run it again"
        )
