"""A model's results beside those of the model that it is compared with, and what exceeds the noise."""

from __future__ import annotations

import math

import attrs

from mobileclip.evaluation.comparison import ComparisonRow, compare_results
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE

_STANDARD_ERRORS = 2.0
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
    ours, theirs = ({key: one.results[key] for key in both} for one in (model, reference))
    names = {entry.name: entry.key for entry in SUITE}
    rows = [_with_noise(row, names[row.name], model, reference) for row in compare_results(ours, theirs)]
    others = sorted(key for key in both if key not in names.values())
    return (*rows, *(_other(key, model, reference) for key in others))


def metric_name(result: DatasetResult, key: str) -> str:
    """Return which of a result's metrics is its main one: the suite's, or one of the same value."""
    entry = next((one for one in SUITE if one.key == key), None)
    if entry is not None:
        return entry.main_metric
    names = dict.fromkeys((*_USUAL, *result.metrics))
    return next(name for name in names if result.metrics.get(name) == result.main_metric)


def _with_noise(row: ComparisonRow, key: str, model: ModelResults, reference: ModelResults) -> ComparisonRow:
    assert row.measured is not None
    assert row.published is not None
    variance = _variance(row.measured, model, key) + _variance(row.published, reference, key)
    return attrs.evolve(row, noise=_STANDARD_ERRORS * math.sqrt(variance))


def _other(key: str, model: ModelResults, reference: ModelResults) -> ComparisonRow:
    result = model.results[key]
    row = ComparisonRow(
        name=result.dataset,
        metric=metric_name(result, key),
        measured=result.main_metric,
        published=reference.results[key].main_metric,
        noise=math.inf,
    )
    return _with_noise(row, key, model, reference)


def _variance(score: float, model: ModelResults, key: str) -> float:
    """Return the variance of an accuracy over so many images; infinite where their number is not known."""
    suite = {entry.key: entry.num_images for entry in SUITE}
    coverage = model.coverage.get(key)
    used = model.results[key].num_images if coverage is None else coverage.num_used
    num_images = suite.get(key) if used is None else used
    if not num_images:
        return math.inf
    # Other metrics than accuracies may lie outside; the noise of those is not known by their value.
    return max(0.0, score * (1 - score)) / num_images
