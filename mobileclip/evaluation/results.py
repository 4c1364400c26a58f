"""Results of models on data sets, measured or published, with functions to read and write JSON Lines files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.blocks import models as known_models
from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.intervals import Interval, Outcomes, proportion_interval
from mobileclip.evaluation.suite import SUITE, suite_sizes
from mobileclip.inputs import Interpolation
from mobileclip.registry import nearest
from mobileclip.strict import parse_json, split_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mobileclip.encoders import DualEncoderSpec

MAIN_METRIC = "main_metric"
Source = Literal["measured", "published"]


@attrs.frozen(kw_only=True, eq=False)
class Predictions:
    """The class that a model predicted for each image.

    Shape:
        labels, predicted, margin: `(images,)`.

    Args:
        keys: keys of the images.
        class_names: class names in the order of the labels.
        labels: class index of each image.
        predicted: index of the class with the best score.
        margin: score of the predicted class minus score of the image's true class; the scores are cosine similarities
            for zero-shot classification, and logits for a probe.
    """

    keys: tuple[str, ...]
    class_names: tuple[str, ...]
    labels: NDArray[Any]
    predicted: NDArray[Any]
    margin: NDArray[Any]


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


@attrs.frozen(kw_only=True)
class DatasetResult:
    """A model's result on one data set, measured here or published.

    Args:
        key: key of the data set, such as `vtab/pets`.
        dataset: name of the data set in tables.
        metrics: metrics by name, including `main_metric`: fractions from 0 to 1, or numbers of images for `count_...`.
        num_images: number of evaluated images, or of cases for multiple-choice tasks; None if unknown, as for published
            results.
        num_skipped: number of skipped samples and shards; None if unknown.
        absent_classes: names of classes without an image.
        reading: input settings, namely image size, resize filter, context length, precision and a hash of the
            templates; empty for published results.
        evaluated: hashes of the model and the data, and the time, device and library version of the encoding; empty for
            published results.
        report: number of samples read, and skipped samples by reason.
        outcomes: per-image outcomes of the main metric; None if unknown.
        predictions: per-image predictions of a classifier; None if unknown.
        parts: partial results with their own rows in the table, such as one result per language.

    Raises:
        ValueError: if there is no main metric, a metric is not finite, or a number of images or samples is negative.
    """

    key: str
    dataset: str
    metrics: Mapping[str, float] = attrs.field(converter=_floats)
    num_images: int | None = None
    num_skipped: int | None = None
    absent_classes: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    reading: Mapping[str, Any] = attrs.field(factory=dict)
    evaluated: Mapping[str, str] = attrs.field(factory=dict)
    report: SkipReport = attrs.field(factory=lambda: SkipReport(log=False), eq=False, repr=False)
    outcomes: Outcomes | None = attrs.field(default=None, eq=False, repr=False)
    predictions: Predictions | None = attrs.field(default=None, eq=False, repr=False)
    parts: tuple[DatasetResult, ...] = attrs.field(default=(), eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if MAIN_METRIC not in self.metrics:
            raise ValueError(
                f"the result on {self.key!r} has no {MAIN_METRIC}; its metrics are: {', '.join(self.metrics) or 'none'}"
            )
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} on {self.key!r} is {value}, expected a finite number")
        for name, number in (("num_images", self.num_images), ("num_skipped", self.num_skipped)):
            if number is not None and (type(number) is not int or number < 0):
                raise ValueError(f"{name} on {self.key!r} is {number!r}, expected a non-negative integer")

    @property
    def main_metric(self) -> float:
        """The main metric, as a fraction from 0 to 1."""
        return self.metrics[MAIN_METRIC]

    @property
    def left_out(self) -> dict[str, int]:
        """Number of skipped samples by reason."""
        return dict(self.report.counts.most_common())

    @property
    def size(self) -> int | None:
        """Number of images, from the result or else from the suite; None if unknown."""
        return self.num_images or suite_sizes().get(self.key)

    @property
    def interval(self) -> Interval | None:
        """The 95 % confidence interval of the main metric.

        Without `outcomes`, the interval is the interval of a proportion of `size` images, or None if `size` is unknown.
        """
        if self.outcomes is not None:
            return self.outcomes.interval
        total, share = self.size, self.main_metric
        return proportion_interval(share * total, total) if total and 0 <= share <= 1 else None


@attrs.frozen(kw_only=True)
class Latency:
    """Latency of one image and of one text on one device.

    Args:
        image_ms: latency of the image tower, in milliseconds.
        text_ms: latency of the text tower, in milliseconds.
        device: name of the device, such as `iPhone 12 Pro Max, Core ML, batch of 1`; reports compare only latencies on
            the same device.
        source: whether the latency is measured here or published.
        load: load average of the machine over the minute before the measurement; None if unknown.
    """

    image_ms: float = attrs.field(validator=validators.gt(0))
    text_ms: float = attrs.field(validator=validators.gt(0))
    device: str = attrs.field(validator=validators.min_len(1))
    source: Source = attrs.field(validator=validators.in_(("measured", "published")))
    load: float | None = None

    @property
    def total_ms(self) -> float:
        """Total latency of one image and one text, in milliseconds."""
        return self.image_ms + self.text_ms


@attrs.frozen(kw_only=True)
class ModelResults:
    """A model with its results, measured here or published.

    Args:
        name: unique name of the model in tables.
        results: results by key of the data set.
        source: whether the results are measured here or published.
        reference: name of the model to compare the results with; None for no comparison.
        latencies: latencies on one or more devices.
        num_parameters: number of parameters of both towers; None if unknown.
        path: path of the results file; None for results without a file.
    """

    name: str = attrs.field(validator=validators.min_len(1))
    results: Mapping[str, DatasetResult]
    source: Source = attrs.field(default="measured", validator=validators.in_(("measured", "published")))
    reference: str | None = None
    latencies: tuple[Latency, ...] = ()
    num_parameters: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    path: Path | None = None

    def only(self, keys: Iterable[str]) -> ModelResults:
        """Return a copy of the model with only the results on the given data sets."""
        kept = set(keys)
        return attrs.evolve(self, results={key: one for key, one in self.results.items() if key in kept})


def read_results(path: Path | str) -> dict[str, DatasetResult]:
    """Return the results that a file holds, by key of the data set.

    Args:
        path: a JSON Lines file with `key`, `dataset`, `metrics` and optional fields in each line. If a key occurs more
            than once, for example after a repeated evaluation, the last result counts.

    Raises:
        ValueError: if a line is malformed; the message gives the line number.
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
    """Write results in the format of `read_results`; an existing file is replaced."""
    storage.write_text(path, "".join(f"{json.dumps(_line(one), ensure_ascii=False)}\n" for one in results))


# A process holds the lock for only milliseconds.
_WAIT_SECONDS = 120.0


def add_result(path: Path, result: DatasetResult, *, model: str) -> None:
    """Append a result to a file, replacing any result with equal `key` and `reading`; safe for concurrent processes.

    Args:
        path: results file for one set of model weights; see `read_results`.
        result: result on one data set.
        model: name of the model in tables.

    Raises:
        OSError: if the file cannot be written; an earlier version of the file then remains unchanged.
        ValueError: if a line is not valid JSON, or other processes hold the lock of the file for two minutes.
    """
    # CLIP_benchmark's table scripts need the fields `model` and `pretrained`.
    values = _line(result) | {"model": model, "pretrained": result.evaluated["weights_sha256"]}
    with storage.exclusive(path.parent, wait_seconds=_WAIT_SECONDS):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = [line for line in split_lines(text) if line.strip() and not _is_replaced(parse_json(line), result)]
        storage.write_text(path, "".join(f"{line}\n" for line in (*kept, json.dumps(values, ensure_ascii=False))))


def _is_replaced(line: Any, result: DatasetResult) -> bool:
    """Return whether a line has the `key` and `reading` of a result."""
    if not isinstance(line, dict):
        raise ValueError(f"expected each line to be an object with key, dataset and metrics, got {str(line)[:60]!r}")
    return bool(line.get("key") == result.key and line.get("reading", {}) == result.reading)


_LINE = ("key", "dataset", "metrics", "num_images", "num_skipped")
_OF_MEASURED = ("absent_classes", "reading", "evaluated")


def _line(result: DatasetResult) -> dict[str, Any]:
    values = {name: getattr(result, name) for name in _LINE if getattr(result, name) is not None}
    if result.evaluated:
        values |= {name: getattr(result, name) for name in ("left_out", *_OF_MEASURED)}
    if result.outcomes is not None:
        values["interval"] = attrs.astuple(result.outcomes.interval)
    return values


def _result(line: Any) -> DatasetResult:
    if not isinstance(line, dict) or not isinstance(line.get("metrics", {}), dict):
        raise ValueError("expected an object with key, dataset and metrics, where metrics is an object of numbers")
    values = {name: line[name] for name in ("num_images", "num_skipped", *_OF_MEASURED) if name in line}
    return DatasetResult(
        key=str(line["key"]),
        dataset=str(line["dataset"]),
        metrics={name: value for name, value in line["metrics"].items() if value is not None},
        report=SkipReport(log=False, counts=Counter(line.get("left_out", {}))),
        **values,
    )


def suite_average(results: Mapping[str, DatasetResult]) -> float:
    """Return the mean of the main metrics of the 38 data sets, as a fraction from 0 to 1.

    Args:
        results: results by key; results on other data sets are ignored.

    Raises:
        ValueError: if a data set of the suite is missing, since a mean over fewer data sets is not comparable.
    """
    missing = [entry.name for entry in SUITE if entry.key not in results]
    if missing:
        raise ValueError(
            f"the average needs all {len(SUITE)} data sets, but {len(missing)} are missing: {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}"
        )
    return fmean(results[entry.key].main_metric for entry in SUITE)


_NAMES = {entry.key: entry.name for entry in SUITE}
# Main metrics outside the suite; the search starts with these, since another metric may have the same value.
_USUAL = ("acc1", "mean_recall@1")
_STANDARD_ERRORS = 2.0


@attrs.frozen(kw_only=True)
class Difference:
    """Difference between two models on a data set; metrics and differences are fractions, not per cent.

    Args:
        dataset: name of the data set in tables.
        metric: name of the main metric.
        value: main metric of the model; None if the model has no result.
        reference: main metric of the reference model; None if the reference model has no result.
        interval: 95 % confidence interval of the difference; None if a result is missing or the number of images is
            unknown.
        num_images: number of images that both models were evaluated on; if the images differ, the number of images of
            the first known result; None if unknown.
    """

    dataset: str
    metric: str
    value: float | None
    reference: float | None
    interval: Interval | None
    num_images: int | None

    @property
    def difference(self) -> float | None:
        """Main metric of the model minus main metric of the reference; None if a metric is missing."""
        return None if self.value is None or self.reference is None else self.value - self.reference

    @property
    def stands_out(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def differences(model: ModelResults, reference: ModelResults) -> tuple[Difference, ...]:
    """Return the differences between two models on their common data sets, with the data sets of the suite first."""
    return tuple(
        difference(model.results[key], reference.results[key])
        for key in ordered_keys([model])
        if key in reference.results
    )


def ordered_keys(models: Sequence[ModelResults]) -> list[str]:
    """Return the keys of all data sets with a result of any model, with the data sets of the suite first."""
    found = {key for model in models for key in model.results}
    return [*(key for key in _NAMES if key in found), *sorted(found - _NAMES.keys())]


def compare_results(
    measured: Mapping[str, DatasetResult], published: Mapping[str, DatasetResult]
) -> tuple[Difference, ...]:
    """Return the difference on each data set of the suite with a measured or published result.

    Args:
        measured: measured results by key.
        published: published results by key.
    """
    keys = [key for key in _NAMES if key in measured or key in published]
    return tuple(difference(measured.get(key), published.get(key)) for key in keys)


def difference(one: DatasetResult | None, other: DatasetResult | None) -> Difference:
    """Return the difference between two results on the same data set; one of the results may be None.

    If both results have per-image outcomes on the same images, the interval is for the paired differences. Otherwise,
    the interval is the difference plus or minus two standard errors.
    """
    known = [side for side in (one, other) if side is not None]
    interval, num_images = None, known[0].num_images
    if one is not None and other is not None:
        paired = one.outcomes and other.outcomes and one.outcomes.compared_with(other.outcomes)
        variances = [_variance(side.main_metric, side.size) for side in known]
        if paired:
            interval, num_images = paired.interval, paired.num_questions
        elif all(map(math.isfinite, variances)):
            gap, noise = one.main_metric - other.main_metric, _STANDARD_ERRORS * math.sqrt(sum(variances))
            interval = Interval(gap - noise, gap + noise)
    return Difference(
        dataset=_NAMES.get(known[0].key, known[0].dataset),
        metric=metric_name(known[0]),
        value=None if one is None else one.main_metric,
        reference=None if other is None else other.main_metric,
        interval=interval,
        num_images=num_images,
    )


def metric_name(result: DatasetResult) -> str:
    """Return the name of the main metric: from the suite, or else the first metric equal to `main_metric`."""
    entry = next((one for one in SUITE if one.key == result.key), None)
    if entry is not None:
        return entry.main_metric
    names = dict.fromkeys((*_USUAL, *result.metrics))
    return next(name for name in names if result.metrics.get(name) == result.main_metric)


def _variance(score: float, num_images: int | None) -> float:
    """Return the variance of an accuracy over `num_images` images, or infinity if the number is unknown."""
    return math.inf if not num_images else max(0.0, score * (1 - score)) / num_images


UNKNOWN_FILTER = frozenset(f"mobileclip{size}" for size in ("_s3", "_s4", "2_s0", "2_s2", "2_b", "2_s3", "2_s4"))
"""Models whose published results used an unknown resize filter.

This library uses the bilinear filter that open_clip's pretrained tags specify; the README of the release uses bicubic.
"""


def published_models() -> tuple[str, ...]:
    """Return the names of the models whose results are published."""
    return tuple(_figures("published.json"))


def published_results(model: str) -> dict[str, DatasetResult]:
    """Return a model's published results by key: on the 38 data sets, and for MobileCLIP2 also on nine others.

    The results exclude the data sets in `NOT_EVALUATED`.

    Args:
        model: name of the model, such as `mobileclip_s2`.

    Raises:
        ValueError: if no results of the model are published.

    Source: the results in the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691).
    """
    figures = _figures("published.json")
    if model not in figures:
        raise ValueError(f"no results of {model!r} are published; {nearest(model, figures)}")
    return {
        key: DatasetResult(key=key, dataset=_NAMES.get(key, key.rpartition("/")[2]), metrics=metrics)
        for key, metrics in figures[model].items()
    }


def published_model(name: str) -> ModelResults:
    """Return a published model with its published results, latency and number of parameters.

    Args:
        name: name of the model, such as `mobileclip_s2`; see `published_models`.

    Raises:
        ValueError: if no results of the model are published.

    Source: the model tables in the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691), whose
        latencies are from an iPhone 12 Pro Max.
    """
    results, figures = published_results(name), _figures("latencies.json")
    model = figures["models"][name]
    times = {side: model[side] for side in ("image_ms", "text_ms")}
    return ModelResults(
        name=name,
        results=results,
        source="published",
        latencies=(Latency(**times, device=figures["device"], source="published"),),
        num_parameters=round(model["num_image_parameters"] + model["num_text_parameters"]),
    )


def published_with(model: str | None, interpolation: Interpolation | None) -> str | None:
    """Return a model's name if its published results may have used a given resize filter; None otherwise.

    Args:
        model: name of the model; None for a model without a name.
        interpolation: filter for resizing images; None for the model's own filter.

    Examples:
        >>> [published_with(name, "bicubic") for name in ("mobileclip_s2", "mobileclip2_s2")]
        [None, 'mobileclip2_s2']
    """
    if model is None or model not in published_models():
        return None
    own = cast("DualEncoderSpec", known_models[model]).image.input.interpolation
    return model if interpolation in (None, own) or model in UNKNOWN_FILTER else None


@cache
def _figures(file: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((files(__package__) / file).read_text(encoding="utf-8"))
    return figures
