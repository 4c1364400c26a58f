"""The published metrics of a data set, from a model's embeddings of it."""

from __future__ import annotations

from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.datasets.metadata import OVER_GROUPS, needs_metadata
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.metrics.answers import Answers, caption_answers, class_answers
from mobileclip.evaluation.metrics.classification import Hits, classification_hits, ensemble_prompts, mean_hits
from mobileclip.evaluation.metrics.groups import macro_f1_values
from mobileclip.evaluation.metrics.outcomes import (
    Outcomes,
    class_weights,
    macro_f1_outcomes,
    outcomes_of,
    worst_group_outcomes,
)
from mobileclip.evaluation.metrics.retrieval import caption_hits, caption_recall
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.suite import SuiteEntry, key_and_title, suite_entry
from mobileclip.evaluation.tasks.task import Evaluation
from mobileclip.evaluation.tasks.zero_shot.special import grouped_hits, special_metrics

# With fewer classes, five guesses say nothing.
_FEWEST_FOR_TOP5 = 5
# The first is what counts on a data set that is not one of the suite.
_OF_RETRIEVAL = ("mean_recall@1",)
_OF_CLASSIFICATION = ("acc1", "mean_per_class_recall", "F1-macro_all", *OVER_GROUPS)


def score(benchmark: Benchmark, features: Features) -> Evaluation:
    """Return the metrics of a data set: zero-shot classification, or retrieval both ways.

    Classification gives `acc1`, `acc5` where there are at least five classes, `mean_per_class_recall`, and what
    `special_metrics` gives; retrieval `image_retrieval_recall@k` and `text_retrieval_recall@k` for k of 1, 5 and 10 and
    `mean_recall@1`. The main metric is the suite's for its data sets, and `acc1` or `mean_recall@1` for others.

    Args:
        benchmark: the data set.
        features: a model's embeddings of it.

    Raises:
        ValueError: if the main metric of a data set of the suite is none of these, or needs groups that the features
            do not hold.
    """
    main = require_metric(benchmark)
    retrieval = benchmark.kind == "retrieval"
    hits = None if retrieval else _hits(benchmark, features)
    metrics = retrieval_metrics(features) if hits is None else _classification(benchmark, features, hits)
    metrics[MAIN_METRIC] = metrics[main]
    key, name = key_and_title(benchmark.name)
    return Evaluation(
        result=DatasetResult(
            key=key,
            dataset=name,
            metrics=metrics,
            num_images=len(features.keys),
            num_skipped=features.report.num_skipped,
        ),
        report=features.report,
        absent_classes=() if retrieval else absent_classes(benchmark, features),
        outcomes=_outcomes(main, benchmark, features, hits),
        answers=_answers(features, hits),
    )


def require_metric(benchmark: Benchmark) -> str:
    """Return the name of the metric that counts, which is known before anything is encoded.

    Raises:
        ValueError: if it cannot be computed.
    """
    entry: SuiteEntry | None = suite_entry(benchmark.name)
    given = _OF_RETRIEVAL if benchmark.kind == "retrieval" else _OF_CLASSIFICATION
    main = given[0] if entry is None else entry.main_metric
    if main not in given:
        raise ValueError(
            f"on {benchmark.name} counts {main}, but its folder is one for {benchmark.kind}, which gives "
            f"{', '.join(given)}; WinoGAViL is evaluated as misc/winogavil"
        )
    return main


def _hits(benchmark: Benchmark, features: Features) -> Hits:
    assert features.labels is not None, "a data set of classes has labels"
    shape = (len(benchmark.class_names), len(benchmark.templates), -1)
    return classification_hits(features.image, ensemble_prompts(features.text.reshape(shape)), features.labels)


def _answers(features: Features, hits: Hits | None) -> Answers:
    if hits is None:
        assert features.num_captions is not None, "a data set of captions says whose they are"
        return caption_answers(features.keys, features.image, features.text, features.num_captions)
    assert features.labels is not None, "a data set of classes has labels"
    return class_answers(features.keys, hits.predicted, features.labels)


def _outcomes(main: str, benchmark: Benchmark, features: Features, hits: Hits | None) -> Outcomes:
    """Return the main metric image by image."""
    if hits is None:
        assert features.num_captions is not None, "a data set of captions says whose they are"
        return outcomes_of(
            features.keys, caption_hits(features.image, features.text, features.num_captions.tolist()).cpu().numpy()
        )
    assert features.labels is not None, "a data set of classes has labels"
    labels = features.labels.cpu().numpy()
    if main == "acc1":
        return outcomes_of(features.keys, hits.top1.numpy())
    if main == "mean_per_class_recall":
        return outcomes_of(features.keys, hits.top1.numpy(), class_weights(labels))
    if main == "F1-macro_all":
        values = macro_f1_values(hits.predicted, features.labels.cpu())
        return macro_f1_outcomes(features.keys, values.numpy(), labels)
    key = key_and_title(benchmark.name)[0]
    assert features.metadata is not None, f"{main} is over groups, which the features hold"
    right, groups = grouped_hits(key, main, hits, features.metadata)
    return worst_group_outcomes(features.keys, right.numpy(), groups.cpu().numpy())


def _classification(benchmark: Benchmark, features: Features, hits: Hits) -> dict[str, float]:
    assert features.labels is not None, "a data set of classes has labels"
    names = benchmark.class_names
    accuracy = mean_hits(hits, features.labels, num_classes=len(names))
    metrics = {"acc1": accuracy.top1, "mean_per_class_recall": accuracy.mean_per_class}
    if len(names) >= _FEWEST_FOR_TOP5:
        metrics["acc5"] = accuracy.top5
    entry = suite_entry(benchmark.name)
    if entry is None:
        return metrics
    if features.metadata is None and needs_metadata(benchmark.name):
        raise ValueError(
            f"on {benchmark.name} counts {entry.main_metric}, but the features do not say which groups the images "
            f"belong to; extract them again, from shards with a .npy beside each image"
        )
    return metrics | special_metrics(entry.key, hits, features.labels, features.metadata)


def absent_classes(benchmark: Benchmark, features: Features) -> tuple[str, ...]:
    """Return the names of the classes without an image."""
    assert features.labels is not None, "a data set of classes has labels"
    present = set(features.labels.tolist())
    return tuple(name for index, name in enumerate(benchmark.class_names) if index not in present)


def retrieval_metrics(features: Features) -> dict[str, float]:
    """Return `image_retrieval_recall@k` and `text_retrieval_recall@k` for k of 1, 5 and 10, and `mean_recall@1`."""
    assert features.num_captions is not None, "a data set of captions says whose they are"
    found = caption_recall(features.image, features.text, features.num_captions.tolist())
    metrics = {}
    for side, recall in (("image", found.text_to_image), ("text", found.image_to_text)):
        for k, value in ((1, recall.at1), (5, recall.at5), (10, recall.at10)):
            metrics[f"{side}_retrieval_recall@{k}"] = value
    metrics["mean_recall@1"] = (found.text_to_image.at1 + found.image_to_text.at1) / 2
    return metrics
