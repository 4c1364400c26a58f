"""Statistical comparison of two models: which differences exceed the noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import attrs

from mobileclip.evaluation.comparison import compare_result
from mobileclip.evaluation.metrics.intervals import Interval, mean_interval
from mobileclip.evaluation.metrics.outcomes import Outcomes
from mobileclip.evaluation.report.values import ModelResults, reference_of
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE

Verdict = Literal["better", "worse", "not to be told apart"]

# What counts outside the suite, so that another metric of the same value is not named in its place.
_USUAL = ("acc1", "mean_recall@1")


@attrs.frozen(kw_only=True)
class Row:
    """Two models on one data set.

    Args:
        dataset: its name in tables.
        metric: what counts.
        model_value: of the model, as a fraction of one.
        reference_value: of the model that it is compared with.
        interval: where the true difference lies with 95 % confidence; None where nobody knows how many images there
            were.
        verdict: on the model.
        num_images: that both were asked about, or that the model was; None where that is not known.
        is_paired: whether the same images were compared one by one.
        gained: images that the model alone has right; None where answers are not right or wrong.
        lost: images that the other one alone has right.
    """

    dataset: str
    metric: str
    model_value: float
    reference_value: float
    interval: Interval | None
    verdict: Verdict
    num_images: int | None
    is_paired: bool
    gained: int | None = None
    lost: int | None = None

    @property
    def difference(self) -> float:
        """The model's value less the reference's."""
        return self.model_value - self.reference_value


@attrs.frozen(kw_only=True)
class Comparison:
    """One model against another.

    Args:
        model: its name.
        reference: the name of the other one.
        rows: at least one.
    """

    model: str
    reference: str
    rows: tuple[Row, ...]

    @property
    def counts(self) -> Counter[Verdict]:
        """Number of data sets by verdict."""
        return Counter(row.verdict for row in self.rows)

    @property
    def verdict(self) -> str:
        """The verdict over all data sets."""
        better, worse = self.counts["better"], self.counts["worse"]
        if better and worse:
            return "better on some, worse on others"
        return "better" if better else "worse" if worse else "not to be told apart"

    @property
    def sentence(self) -> str:
        """What the verdict is made of."""
        if len(self.rows) == 1:
            return f"On {self.rows[0].dataset}, {self.model} is {_said(self.rows[0].verdict, self.reference)}."
        parts = [
            f"{name} on {self.counts[name]}"
            for name in ("better", "worse", "not to be told apart")
            if self.counts[name]
        ]
        return f"Of {len(self.rows)} data sets, {self.model} is {', '.join(parts)}."


def comparisons(models: Sequence[ModelResults]) -> tuple[Comparison, ...]:
    """Return every measured model against the first of them, and models against the published ones that they name.

    Models without a data set in common are not compared.
    """
    measured = [model for model in models if model.source == "measured"]
    pairs = [(model, measured[0]) for model in measured[1:]]
    for model in models:
        reference = reference_of(model, models)
        if reference is not None and (model, reference) not in pairs:
            pairs.append((model, reference))
    found = (compare(model, reference) for model, reference in pairs)
    return tuple(one for one in found if one is not None)


def compare(model: ModelResults, reference: ModelResults) -> Comparison | None:
    """Return one model against another, the suite's data sets first; None without a data set in common."""
    both = [key for key in model.results if key in reference.results]
    suite = [entry.key for entry in SUITE if entry.key in both]
    keys = (*suite, *sorted(set(both) - set(suite)))
    rows = tuple(_row(model, reference, key) for key in keys)
    return Comparison(model=model.name, reference=reference.name, rows=rows) if rows else None


def mean_difference(model: ModelResults, reference: ModelResults, keys: Sequence[str]) -> Interval | None:
    """Return where the difference of two models' mean over data sets lies, or None where one of them has no interval.

    Args:
        model: with results on all of them.
        reference: likewise.
        keys: of the data sets, at least one.
    """
    rows = [_row(model, reference, key) for key in keys]
    intervals = [row.interval for row in rows if row.interval is not None]
    differences = [row.difference for row in rows]
    return mean_interval(differences, intervals) if len(intervals) == len(keys) else None


def metric_name(result: DatasetResult, key: str) -> str:
    """Return which of a result's metrics is its main one: the suite's, or one of the same value."""
    entry = next((one for one in SUITE if one.key == key), None)
    if entry is not None:
        return entry.main_metric
    names = dict.fromkeys((*_USUAL, *result.metrics))
    return next(name for name in names if result.metrics.get(name) == result.main_metric)


def _row(model: ModelResults, reference: ModelResults, key: str) -> Row:
    result, expected = _counted(model, key), _counted(reference, key)
    entry = next((one for one in SUITE if one.key == key), None)
    row = Row(
        dataset=result.dataset if entry is None else entry.name,
        metric=metric_name(result, key),
        model_value=result.main_metric,
        reference_value=expected.main_metric,
        interval=None,
        verdict="not to be told apart",
        num_images=result.num_images,
        is_paired=False,
    )
    one, other = model.outcomes.get(key), reference.outcomes.get(key)
    found = None if one is None or other is None else one.compared_with(other)
    if one is not None and other is not None and found is not None:
        gained, lost = _counts(one, other)
        return attrs.evolve(
            row,
            interval=found.interval,
            verdict=_verdict(found.interval),
            num_images=found.num_questions,
            is_paired=True,
            gained=gained,
            lost=lost,
        )
    noise = compare_result(key, "", result, expected, None if entry is None else entry.num_images).noise
    if noise == float("inf"):
        return row
    interval = Interval(row.difference - noise, row.difference + noise)
    return attrs.evolve(row, interval=interval, verdict=_verdict(interval))


def _verdict(interval: Interval) -> Verdict:
    """Return what the interval that is shown says; a test beside it, of another approximation, might say otherwise."""
    return "better" if interval.low > 0 else "worse" if interval.high < 0 else "not to be told apart"


def _counts(one: Outcomes, other: Outcomes) -> tuple[int | None, int | None]:
    """Return how many images one model alone has right, and how many the other, where answers are right or wrong."""
    values = (one.values, other.values)
    if not all(((value == 0) | (value == 1)).all() for value in values):
        return None, None
    return int((values[0] > values[1]).sum()), int((values[1] > values[0]).sum())


def _counted(model: ModelResults, key: str) -> DatasetResult:
    """Return a result with the number of images that it is from, where the model knows it."""
    coverage, result = model.coverage.get(key), model.results[key]
    return result if coverage is None else attrs.evolve(result, num_images=coverage.num_used)


def _said(verdict: Verdict, reference: str) -> str:
    return f"{verdict} than {reference}" if verdict != "not to be told apart" else f"{verdict} from {reference}"
