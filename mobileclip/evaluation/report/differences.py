"""A model's results beside those of the model that it is compared with, and what exceeds the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from mobileclip.evaluation.comparison import ComparisonRow, compare_result, compare_results
from mobileclip.evaluation.metrics.intervals import PairedDifference
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE

SIGNIFICANT = 0.05
"""A p-value below it marks a difference."""

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


def paired(model: ModelResults, reference: ModelResults, key: str) -> PairedDifference | None:
    """Return how much better a model is than another on the same images, or None where that is not known by image."""
    ours, theirs = model.outcomes.get(key), reference.outcomes.get(key)
    return None if ours is None or theirs is None else ours.compared_with(theirs)


def is_better(model: ModelResults, reference: ModelResults, key: str) -> bool:
    """Return whether a model is better by more than the noise: by a paired test, or by `differences` without one."""
    if key not in model.results or key not in reference.results:
        return False
    found = paired(model, reference, key)
    if found is not None:
        return found.difference > 0 and found.p_value < SIGNIFICANT
    entry = next((one for one in SUITE if one.key == key), None)
    row = compare_result(
        key, "", _counted(model, key), _counted(reference, key), None if entry is None else entry.num_images
    )
    return row.stands_out and row.difference is not None and row.difference > 0


def clear_best(models: Sequence[ModelResults], key: str) -> int | None:
    """Return the place of the model that is better than every other one by more than the noise, if there is one."""
    there = [number for number, model in enumerate(models) if key in model.results]
    for number in there:
        others = [models[other] for other in there if other != number]
        if others and all(is_better(models[number], other, key) for other in others):
            return number
    return None


def clear_best_average(models: Sequence[ModelResults]) -> int | None:
    """Return the place of the model whose average over the suite is the best by more than the noise of all of them."""
    keys = [entry.key for entry in SUITE]
    there = [number for number, model in enumerate(models) if model.results.keys() >= set(keys)]
    for number in there:
        others = [models[other] for other in there if other != number]
        if others and all(_is_better_on_average(models[number], other) for other in others):
            return number
    return None


def _is_better_on_average(model: ModelResults, reference: ModelResults) -> bool:
    rows = [row for row in differences(model, reference)[: len(SUITE)] if row.difference is not None]
    noise = math.sqrt(sum(row.noise**2 for row in rows))
    return sum(row.difference for row in rows if row.difference is not None) > noise
