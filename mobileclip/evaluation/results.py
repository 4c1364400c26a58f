"""Results on data sets as the field publishes them: a line of JSON each, the average, and how two of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.evaluation.suite import SUITE
from mobileclip.strict import parse_json, split_lines

MAIN_METRIC = "main_metric"


def _metrics(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


@attrs.frozen(kw_only=True)
class DatasetResult:
    """A model's metrics on one data set.

    Args:
        key: of the data set, such as `vtab/pets`.
        dataset: its name in tables.
        metrics: by name, as fractions of one, but for `count_` of a group, a number of images; `main_metric` is the one
            that counts.
        num_images: how many images, or instances of WinoGAViL, they are over; None where that is not known, as of the
            published ones.
        num_skipped: how many samples, or whole shards, were left out; None where that is not known.

    Raises:
        ValueError: if there is no main metric, a metric is no finite number, or a number of images is below zero.
    """

    key: str
    dataset: str
    metrics: Mapping[str, float] = attrs.field(converter=_metrics)
    num_images: int | None = None
    num_skipped: int | None = None

    def __attrs_post_init__(self) -> None:
        if MAIN_METRIC not in self.metrics:
            raise ValueError(
                f"the result on {self.key!r} has no {MAIN_METRIC}, only {', '.join(self.metrics) or 'none'}"
            )
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} on {self.key!r} is {value}")
        for name, number in (("num_images", self.num_images), ("num_skipped", self.num_skipped)):
            if number is not None and (type(number) is not int or number < 0):
                raise ValueError(f"{name} on {self.key!r} is {number!r}, expected a whole number from 0")

    @property
    def main_metric(self) -> float:
        """The metric that counts, as a fraction of one."""
        return self.metrics[MAIN_METRIC]


def read_results(path: Path | str) -> dict[str, DatasetResult]:
    """Return the results in a file, by key.

    Args:
        path: a JSON Lines file; each line has `key`, `dataset` and `metrics`. A key that comes again replaces the
            result before, as where an evaluation was repeated; other fields are ignored.

    Raises:
        ValueError: if a line is malformed; the message has its number.
        OSError: if the file cannot be read.
    """
    results = {}
    for number, line in enumerate(split_lines(Path(path).read_text(encoding="utf-8")), 1):
        if not line.strip():
            continue
        try:
            result = _result(parse_json(line))
        except (ValueError, TypeError, KeyError) as error:
            detail = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: {detail}") from None
        results[result.key] = result
    return results


def write_results(path: Path | str, results: Iterable[DatasetResult]) -> None:
    """Write results as `read_results` reads them; the file is replaced whole."""
    lines = [json.dumps(_line(result), ensure_ascii=False) for result in results]
    storage.write_text(path, "".join(f"{line}\n" for line in lines))


def suite_average(results: Mapping[str, DatasetResult]) -> float:
    """Return the mean of the main metrics of the 38 data sets, as a fraction of one.

    Args:
        results: by key; those on other data sets do not count.

    Raises:
        ValueError: if a data set of the suite is missing: the mean of fewer is another number.
    """
    missing = [entry.name for entry in SUITE if entry.key not in results]
    if missing:
        raise ValueError(
            f"the average is over {len(SUITE)} data sets, {len(missing)} of them are missing: {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}"
        )
    return fmean(results[entry.key].main_metric for entry in SUITE)


def _line(result: DatasetResult) -> dict[str, Any]:
    return {name: value for name, value in attrs.asdict(result).items() if value is not None}


def _result(line: Any) -> DatasetResult:
    if not isinstance(line, dict) or not isinstance(line.get("metrics", {}), dict):
        raise ValueError("expected an object with key, dataset and metrics, an object of numbers")
    metrics = {name: value for name, value in line["metrics"].items() if value is not None}
    return DatasetResult(
        key=str(line["key"]),
        dataset=str(line["dataset"]),
        metrics=metrics,
        num_images=line.get("num_images"),
        num_skipped=line.get("num_skipped"),
    )


_STANDARD_ERRORS = 2.0


@attrs.frozen(kw_only=True)
class ComparisonRow:
    """One data set; fractions of one, None where a side has no result.

    Args:
        name: the data set.
        metric: what is compared.
        measured: the model's result.
        published: the published one.
        noise: by how much two equally good models may differ: two standard errors of the difference of two accuracies
            on so many images.
    """

    name: str
    metric: str
    measured: float | None
    published: float | None
    noise: float

    @property
    def difference(self) -> float | None:
        """Measured minus published, where there are both."""
        return None if self.measured is None or self.published is None else self.measured - self.published

    @property
    def stands_out(self) -> bool:
        """Whether the two differ by more than the noise."""
        return self.difference is not None and abs(self.difference) > self.noise


def compare_results(
    measured: Mapping[str, DatasetResult], published: Mapping[str, DatasetResult]
) -> tuple[ComparisonRow, ...]:
    """Return a row for every data set of the suite that either side has a result on.

    Args:
        measured: by key.
        published: by key.
    """
    return tuple(
        compare_result(
            entry.name, entry.main_metric, measured.get(entry.key), published.get(entry.key), entry.num_images
        )
        for entry in SUITE
        if entry.key in measured or entry.key in published
    )


def compare_result(
    name: str, metric: str, measured: DatasetResult | None, published: DatasetResult | None, num_images: int | None
) -> ComparisonRow:
    """Return the row of one data set.

    Args:
        name: of the data set.
        metric: what counts of it.
        measured: the model's result.
        published: the published one.
        num_images: of the data set, for a side that does not say how many it used; where nobody knows, the noise is
            infinite and nothing stands out.
    """
    sides = [side for side in (measured, published) if side is not None]
    variances = [_variance(side.main_metric, side.num_images or num_images) for side in sides]
    return ComparisonRow(
        name=name,
        metric=metric,
        measured=None if measured is None else measured.main_metric,
        published=None if published is None else published.main_metric,
        noise=_STANDARD_ERRORS * math.sqrt(2 * sum(variances) / len(variances)) if variances else math.inf,
    )


def _variance(score: float, num_images: int | None) -> float:
    """Return the variance of an accuracy over so many images; other metrics may lie outside, and have none known."""
    return math.inf if not num_images else max(0.0, score * (1 - score)) / num_images
