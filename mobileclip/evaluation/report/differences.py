"""A model's results beside those of the model that it is compared with, and what exceeds the noise."""

from __future__ import annotations

import attrs

from mobileclip.evaluation.comparison import ComparisonRow, compare_result, compare_results
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE

# What counts outside the suite, so that another metric of the same value is not named in its place.
_USUAL = ("acc1", "mean_recall@1")


def differences(model: ModelResults, reference: ModelResults) -> tuple[ComparisonRow, ...]:
    """Return a row for every data set that both models have a result on: those of the suite first, in its order.

    The noise is two standard errors of the difference, from the number of images that each side was evaluated on: as
    many as were used, where that is known, and as many as the suite's data set has otherwise. Where neither is known
    the noise is infinite, and nothing stands out.

    Args:
        model: called measured in the rows.
        reference: called published in the rows.
    """
    both = [key for key in model.results if key in reference.results]
    ours, theirs = ({key: _counted(one, key) for key in both} for one in (model, reference))
    others = sorted(set(both) - {entry.key for entry in SUITE})
    return (
        *compare_results(ours, theirs),
        *(
            compare_result(ours[key].dataset, metric_name(ours[key], key), ours[key], theirs[key], None)
            for key in others
        ),
    )


def metric_name(result: DatasetResult, key: str) -> str:
    """Return which of a result's metrics is its main one: the suite's, or one of the same value."""
    entry = next((one for one in SUITE if one.key == key), None)
    if entry is not None:
        return entry.main_metric
    names = dict.fromkeys((*_USUAL, *result.metrics))
    return next(name for name in names if result.metrics.get(name) == result.main_metric)


def _counted(model: ModelResults, key: str) -> DatasetResult:
    """Return a result with the number of images that it is from, where the model knows it."""
    coverage = model.coverage.get(key)
    result = model.results[key]
    return result if coverage is None else attrs.evolve(result, num_images=coverage.num_used)
