"""Zero-shot classification and retrieval: computes the published metrics of a data set from a model's embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor

from mobileclip.evaluation.data import FIELDS, OVER_GROUPS, Benchmark, fingerprint, needs_metadata
from mobileclip.evaluation.features import Features, Session
from mobileclip.evaluation.intervals import (
    Outcomes,
    class_weights,
    macro_f1_outcomes,
    outcomes_of,
    worst_group_outcomes,
)
from mobileclip.evaluation.metrics import (
    Hits,
    RetrievalResult,
    classification_hits,
    group_accuracy,
    macro_f1,
    macro_f1_values,
    mean_hits,
    rank_captions,
)
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult, Predictions
from mobileclip.evaluation.suite import key_and_title, suite_entry
from mobileclip.evaluation.tasks.task import Task
from mobileclip.inference.texts import ensemble_prompts


@attrs.frozen
class _Grouping:
    """A metadata field that divides the images into groups, and the name of the worst-group metric."""

    field: str
    worst: str


_GROUPINGS = {
    "wilds/camelyon17": (_Grouping("slide", "acc_wg"),),
    "wilds/fmow": (_Grouping("year", "acc_worst_year"), _Grouping("region", "acc_worst_region")),
    "fairness/dollar_street": (_Grouping("income_ds", "acc_top5_wg"),),
    "fairness/geode": (_Grouping("region", "acc_wg"),),
}


def special_metrics(key: str, hits: Hits, labels: Tensor, metadata: Tensor | None) -> dict[str, float]:
    """Return the metrics that only some data sets have, under their published names.

    iWildCam has accuracy (`acc_avg`), macro F1 (`F1-macro_all`) and macro recall (`recall-macro_all`). The data sets
    with groups are Camelyon17 (by slide), FMoW (by year and by region), Dollar Street (by income, with top-5 accuracy)
    and GeoDE (by region). The group metrics are the accuracy over all images, such as `acc_avg`, the accuracy of each
    group, such as `acc_region:2`, the accuracy of the worst group, and the number of images in each group, such as
    `count_region:2`.

    Shape:
        labels: `(images,)`; metadata: `(images, fields)`.

    Args:
        key: key of the data set in the suite.
        hits: per-image results of the classification.
        labels: class index of each image.
        metadata: values of `metadata_fields`; None to leave out the metrics of groups.

    Differs:
        WILDS itself ignores region 5 of FMoW, "Other", in the worst-region metric; the test split has four images of
        this region. DataComp's evaluation tries to ignore region 5 too, but compares the region's name with region
        numbers. Here, region 5 counts, as in the published results; some published results are 0 for this reason. The
        metrics omit groups without images instead of counting such a group as 0.

    Source: the public evaluation of DataComp (Gadre et al. 2023); Koh et al. 2021 (WILDS).
    """
    metrics: dict[str, float] = {}
    if key == "wilds/iwildcam":
        accuracy = mean_hits(hits, labels, num_classes=int(labels.max()) + 1)
        metrics["acc_avg"] = accuracy.top1
        metrics["recall-macro_all"] = accuracy.mean_per_class
        metrics["F1-macro_all"] = macro_f1(hits.predicted, labels.cpu())
    if metadata is None:
        return metrics
    prefix = "acc_top5" if key == "fairness/dollar_street" else "acc"
    for grouping in _GROUPINGS.get(key, ()):
        found = group_accuracy(*grouped_hits(key, grouping.worst, hits, metadata))
        metrics[f"{prefix}_avg"] = found.average
        metrics |= {f"{prefix}_{grouping.field}:{group}": value for group, value in found.groups.items()}
        metrics |= {f"count_{grouping.field}:{group}": float(count) for group, count in found.counts.items()}
        metrics[grouping.worst] = found.worst
    return metrics


def grouped_hits(key: str, worst: str, hits: Hits, metadata: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score and the group index of each image, for a worst-group metric.

    Shape:
        metadata: `(images, fields)`; results: `(images,)`.

    Args:
        key: key of the data set in the suite.
        worst: name of the worst-group metric, such as `acc_wg`.
        hits: per-image results of the classification.
        metadata: values of `metadata_fields`.
    """
    field = next(grouping.field for grouping in _GROUPINGS[key] if grouping.worst == worst)
    right = hits.top5 if key == "fairness/dollar_street" else hits.top1
    return right, metadata[:, FIELDS[key].index(field)]


# With fewer classes, top-5 accuracy is meaningless.
_FEWEST_FOR_TOP5 = 5
# The first entry is the main metric of data sets outside the suite.
_OF_RETRIEVAL = ("mean_recall@1",)
_OF_CLASSIFICATION = ("acc1", "mean_per_class_recall", "F1-macro_all", *OVER_GROUPS)


def score(benchmark: Benchmark, features: Features) -> DatasetResult:
    """Return the metrics of zero-shot classification, or of retrieval for a data set with captions.

    Classification has `acc1`, `acc5` (for at least five classes), `mean_per_class_recall` and the metrics of
    `special_metrics`; see `score_retrieval` for retrieval. The suite defines the main metric of suite data sets; the
    main metric of other data sets is `acc1` or `mean_recall@1`.

    Args:
        benchmark: data set with its class names and templates.
        features: a model's embeddings of the data set.

    Raises:
        ValueError: if the main metric does not exist for the kind of the data set (see `require_metric`), or needs
            groups that the features lack.
    """
    main = require_metric(benchmark)
    key, name = key_and_title(benchmark.name)
    if benchmark.kind == "retrieval":
        return score_retrieval(features, key=key, name=name)
    assert features.labels is not None, "a data set of classes has labels"
    shape = (len(benchmark.class_names), len(benchmark.templates), -1)
    hits = classification_hits(features.image, ensemble_prompts(features.text.reshape(shape)), features.labels)
    entry = suite_entry(benchmark.name)
    if entry is not None and features.metadata is None and needs_metadata(benchmark.name):
        raise ValueError(
            f"{benchmark.name} needs groups for {entry.main_metric}, but the features have no groups; compute the "
            f"features again, from shards with a .npy file for each image"
        )
    return score_hits(
        features,
        hits,
        features.labels,
        benchmark.class_names,
        key=key,
        name=name,
        main=main,
        special={} if entry is None else special_metrics(entry.key, hits, features.labels, features.metadata),
    )


def score_hits(
    features: Features,
    hits: Hits,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    key: str,
    name: str,
    main: str,
    special: Mapping[str, float],
) -> DatasetResult:
    """Return the metrics of a classifier.

    Shape:
        labels: `(images,)`.

    Args:
        features: features of the images, with the keys, the skip report and, for worst-group metrics, the metadata.
        hits: per-image results of the classification.
        labels: class index of each image.
        class_names: class names in the order of the labels.
        key: key of the data set in results.
        name: name of the data set in tables.
        main: name of the main metric.
        special: further metrics, which only some data sets have.
    """
    accuracy = mean_hits(hits, labels, num_classes=len(class_names))
    metrics = {"acc1": accuracy.top1, "mean_per_class_recall": accuracy.mean_per_class}
    if len(class_names) >= _FEWEST_FOR_TOP5:
        metrics["acc5"] = accuracy.top5
    present = set(labels.tolist())
    metrics |= special
    return _result(
        features,
        metrics,
        key,
        name,
        main,
        absent_classes=tuple(name for index, name in enumerate(class_names) if index not in present),
        outcomes=_outcomes(features, hits, labels.cpu(), key, main),
        predictions=Predictions(
            keys=features.keys,
            class_names=tuple(class_names),
            labels=labels.cpu().numpy(),
            predicted=hits.predicted.numpy(),
            margin=hits.margin.numpy(),
        ),
    )


def score_retrieval(features: Features, *, key: str, name: str) -> DatasetResult:
    """Return `image_retrieval_recall@k` and `text_retrieval_recall@k` for k of 1, 5 and 10, and `mean_recall@1`.

    Args:
        features: features of images with captions.
        key: key of the data set in results.
        name: name of the data set in tables.
    """
    assert features.num_captions is not None, "expected the number of captions of each image"
    ranking = rank_captions(features.image, features.text, features.num_captions)
    outcomes = outcomes_of(features.keys, ranking.caption_hits.numpy())
    return _result(features, recall_metrics(ranking.recall), key, name, "mean_recall@1", outcomes=outcomes)


def recall_metrics(found: RetrievalResult) -> dict[str, float]:
    """Return the recalls by published metric name, such as `image_retrieval_recall@1`."""
    metrics = {}
    for side, recall in (("image", found.text_to_image), ("text", found.image_to_text)):
        for k, value in ((1, recall.at1), (5, recall.at5), (10, recall.at10)):
            metrics[f"{side}_retrieval_recall@{k}"] = value
    metrics["mean_recall@1"] = (found.text_to_image.at1 + found.image_to_text.at1) / 2
    return metrics


def require_metric(benchmark: Benchmark) -> str:
    """Return the name of a data set's main metric, without opening its images.

    Raises:
        ValueError: if the suite defines a main metric that does not exist for the kind of the data set, classification
            or retrieval.
    """
    entry = suite_entry(benchmark.name)
    given = _OF_RETRIEVAL if benchmark.kind == "retrieval" else _OF_CLASSIFICATION
    main = given[0] if entry is None else entry.main_metric
    if main not in given:
        raise ValueError(
            f"the main metric of {benchmark.name} is {main}, but the folder is for {benchmark.kind}, with only the "
            f"metrics {', '.join(given)}; evaluate WinoGAViL as misc/winogavil"
        )
    return main


def _result(
    features: Features, metrics: Mapping[str, float], key: str, name: str, main: str, **more: Any
) -> DatasetResult:
    return DatasetResult(
        key=key,
        dataset=name,
        metrics={**metrics, MAIN_METRIC: metrics[main]},
        num_images=len(features.keys),
        num_skipped=features.report.num_skipped,
        report=features.report,
        **more,
    )


def _outcomes(features: Features, hits: Hits, labels: Tensor, key: str, main: str) -> Outcomes:
    """Return the per-image outcomes of a classifier's main metric."""
    if main == "acc1":
        return outcomes_of(features.keys, hits.top1.numpy())
    if main == "mean_per_class_recall":
        return outcomes_of(features.keys, hits.top1.numpy(), class_weights(labels.numpy()))
    if main == "F1-macro_all":
        values = macro_f1_values(hits.predicted, labels)
        return macro_f1_outcomes(features.keys, values.numpy(), labels.numpy())
    assert features.metadata is not None, f"{main} needs groups, but the features have none"
    right, groups = grouped_hits(key, main, hits, features.metadata)
    return worst_group_outcomes(features.keys, right.numpy(), groups.cpu().numpy())


def evaluate_benchmark(session: Session, benchmark: Benchmark) -> DatasetResult:
    """Evaluate a model on a data set: compute the embeddings, then the metrics with `score`.

    Raises:
        ValueError: if no image is usable, a shard is missing (see `Benchmark.samples`), or the main metric is not
            available (see `require_metric`); the message gives the reasons.
    """
    require_metric(benchmark)
    return ZeroShotTask(benchmark=benchmark).evaluate(session)


@attrs.frozen(kw_only=True)
class ZeroShotTask(Task):
    """Zero-shot classification, or retrieval if the data set has captions."""

    benchmark: Benchmark

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates of the data set."""
        return self.benchmark.templates

    def content(self) -> str:
        """Return a hash of the data set."""
        return fingerprint(self.benchmark)

    def features(self, session: Session) -> Features:
        """Return the embeddings of images and texts; the session caches prompts separately."""
        return session.features(self.benchmark)[0]

    def score(self, features: Features) -> DatasetResult:
        """Return the metrics of classification or retrieval, from the function `score`."""
        return score(self.benchmark, features)
