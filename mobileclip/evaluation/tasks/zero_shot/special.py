"""What is published beside accuracy on the data sets of WILDS and of fairness: macro F1, and the worst group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mobileclip.evaluation.datasets.metadata import FIELDS
from mobileclip.evaluation.metrics.classification import Hits, mean_hits
from mobileclip.evaluation.metrics.groups import group_accuracy, macro_f1

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class _Grouping:
    """The groups that one of the numbers beside an image makes, and what the accuracy in the worst is called."""

    field: str
    worst: str


_GROUPINGS = {
    "wilds/camelyon17": (_Grouping("slide", "acc_wg"),),
    "wilds/fmow": (_Grouping("year", "acc_worst_year"), _Grouping("region", "acc_worst_region")),
    "fairness/dollar_street": (_Grouping("income_ds", "acc_top5_wg"),),
    "fairness/geode": (_Grouping("region", "acc_wg"),),
}


def special_metrics(key: str, hits: Hits, labels: Tensor, metadata: Tensor | None) -> dict[str, float]:
    """Return the metrics that only some data sets have, under the names that they are published by.

    iWildCam has macro F1 and recall, `F1-macro_all` and `recall-macro_all`. Camelyon17 (by slide), FMoW (by year and by
    region), Dollar Street (by income, among the five best) and GeoDE (by region) have the accuracy over all images,
    such as `acc_avg`, in every group, such as `acc_region:2`, and in the worst of them, with the number of images of a
    group, such as `count_region:2`.

    Shape:
        labels: `(images,)`; metadata: `(images, fields)`.

    Args:
        key: of the data set in the suite.
        hits: what became of the images.
        labels: index of each image's class.
        metadata: what `metadata_fields` names; without, there is nothing about groups.

    Differs:
        WILDS itself leaves FMoW's region 5, "Other", out of the worst region: four images of the test split. The
        published evaluation means to, but looks for the region's name where its number stands. It counts here as in the
        published figures, some of which are 0 on account of it. Groups without an image are left out, not 0.

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
    """Return how right each image is, and the number of its group, of which a metric is the worst.

    Shape:
        metadata: `(images, fields)`; results: `(images,)`.

    Args:
        key: of the data set in the suite.
        worst: name of the metric.
        hits: what became of the images.
        metadata: what `metadata_fields` names.
    """
    field = next(grouping.field for grouping in _GROUPINGS[key] if grouping.worst == worst)
    right = hits.top5 if key == "fairness/dollar_street" else hits.top1
    return right, metadata[:, FIELDS[key].index(field)]
