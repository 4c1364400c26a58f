"""Results of models on data sets, measured and published: one type, read from and written to lines of JSON."""

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
class Answers:
    """The class that a model took each image for.

    Shape:
        labels, predicted, margin: `(images,)`.

    Args:
        keys: keys of the images.
        class_names: in the order of the labels.
        labels: index of each image's class.
        predicted: index of the best-scored class.
        margin: by how much its score is above that of the image's class; cosines of zero-shot classification, logits
            of a probe.
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
        dataset: its name in tables.
        metrics: by name, as fractions of one, but for `count_` of a group, a number of images; `main_metric` is the one
            that counts.
        num_images: how many images, or instances of WinoGAViL, they are over; None where that is not known, as of the
            published ones.
        num_skipped: how many samples, or whole shards, were left out; None where that is not known.
        absent_classes: names of classes without an image.
        reading: how pictures and texts were read: size, filter, context length, precision, and a hash of the templates.
        evaluated: hashes of the model and of the data, when its features were made, where, and by which version.
        report: what was read, and what was left out, by reason.
        outcomes: outcomes of the main metric image by image, where they are known.
        answers: answers of a classifier, where they are known.
        parts: results that have rows of their own beside it, such as that of each language.

    Raises:
        ValueError: if there is no main metric, a metric is no finite number, or a number of images is below zero.
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
    answers: Answers | None = attrs.field(default=None, eq=False, repr=False)
    parts: tuple[DatasetResult, ...] = attrs.field(default=(), eq=False, repr=False)

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

    @property
    def left_out(self) -> dict[str, int]:
        """How many samples could not be used, by reason."""
        return dict(self.report.counts.most_common())

    @property
    def size(self) -> int | None:
        """How many images it is over, by itself or by the suite; None where neither says."""
        return self.num_images or suite_sizes().get(self.key)

    @property
    def interval(self) -> Interval | None:
        """Where the true main metric lies with 95 % confidence.

        Without outcomes it is that of a share of `size` images; None where the size is not known.
        """
        if self.outcomes is not None:
            return self.outcomes.interval
        total, share = self.size, self.main_metric
        return proportion_interval(share * total, total) if total and 0 <= share <= 1 else None


@attrs.frozen(kw_only=True)
class Latency:
    """Milliseconds of one image and of one text, with the device that they were measured on.

    Args:
        image_ms: of the image tower, in milliseconds.
        text_ms: of the text tower, in milliseconds.
        device: where it was measured, such as `iPhone 12 Pro Max, Core ML, batch of 1`; only latencies of one device
            are compared.
        source: whether it was measured here or published.
        load: processes that wanted a core in the minute before, on average; None where nobody knows.
    """

    image_ms: float = attrs.field(validator=validators.gt(0))
    text_ms: float = attrs.field(validator=validators.gt(0))
    device: str = attrs.field(validator=validators.min_len(1))
    source: Source = attrs.field(validator=validators.in_(("measured", "published")))
    load: float | None = None

    @property
    def total_ms(self) -> float:
        """Image and text together, in milliseconds."""
        return self.image_ms + self.text_ms


@attrs.frozen(kw_only=True)
class ModelResults:
    """A model with its results, measured here or published.

    Args:
        name: how tables call it; no two alike.
        results: by key of the data set.
        source: whether they were measured here or published.
        reference: name of the model that these results are compared with.
        latencies: on one device or several.
        num_parameters: number of parameters of both towers.
        path: the file of the results.
    """

    name: str = attrs.field(validator=validators.min_len(1))
    results: Mapping[str, DatasetResult]
    source: Source = attrs.field(default="measured", validator=validators.in_(("measured", "published")))
    reference: str | None = None
    latencies: tuple[Latency, ...] = ()
    num_parameters: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    path: Path | None = None

    def only(self, keys: Iterable[str]) -> ModelResults:
        """Return the model with its results on some data sets alone."""
        kept = set(keys)
        return attrs.evolve(self, results={key: one for key, one in self.results.items() if key in kept})


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
    storage.write_text(path, "".join(f"{json.dumps(_line(one), ensure_ascii=False)}\n" for one in results))


# Holding the file takes milliseconds.
_WAIT_SECONDS = 120.0


def add_result(path: Path, result: DatasetResult, *, model: str) -> None:
    """Put a result at the end of a file, also while other processes do; it replaces one of the same reading.

    Args:
        path: the file of one model's weights; see `read_results`.
        result: on one data set.
        model: what tables call the model.

    Raises:
        OSError: if it cannot be written; the file before is then still there.
        ValueError: if a line is no JSON, or others hold the file for minutes.
    """
    # As CLIP_benchmark names them, whose tables can so be made of lines of ours.
    values = _line(result) | {"model": model, "pretrained": result.evaluated["weights_sha256"]}
    with storage.exclusive(path.parent, wait_seconds=_WAIT_SECONDS):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = [line for line in split_lines(text) if line.strip() and not _is_replaced(parse_json(line), result)]
        storage.write_text(path, "".join(f"{line}\n" for line in (*kept, json.dumps(values, ensure_ascii=False))))


def _is_replaced(line: Any, result: DatasetResult) -> bool:
    """Return whether a line is of the same data set and reading."""
    if not isinstance(line, dict):
        raise ValueError(f"a line is {str(line)[:60]!r}, expected an object with key, dataset and metrics")
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
        raise ValueError("expected an object with key, dataset and metrics, an object of numbers")
    values = {name: line[name] for name in ("num_images", "num_skipped", *_OF_MEASURED) if name in line}
    return DatasetResult(
        key=str(line["key"]),
        dataset=str(line["dataset"]),
        metrics={name: value for name, value in line["metrics"].items() if value is not None},
        report=SkipReport(log=False, counts=Counter(line.get("left_out", {}))),
        **values,
    )


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


_NAMES = {entry.key: entry.name for entry in SUITE}
# What counts outside the suite, so that another metric of the same value is not named in its place.
_USUAL = ("acc1", "mean_recall@1")
_STANDARD_ERRORS = 2.0


@attrs.frozen(kw_only=True)
class Difference:
    """One model less another one on a data set; fractions of one.

    Args:
        dataset: its name in tables.
        metric: what counts.
        value: value of the model; None where it has no result.
        reference: reference of the model that it is compared with; None where that has no result.
        interval: where the true difference lies with 95 % confidence; None where one is missing, or nobody knows how
            many images there were.
        num_images: that both were asked about, or that the model was; None where that is not known.
    """

    dataset: str
    metric: str
    value: float | None
    reference: float | None
    interval: Interval | None
    num_images: int | None

    @property
    def difference(self) -> float | None:
        """The one less the other, where there are both."""
        return None if self.value is None or self.reference is None else self.value - self.reference

    @property
    def stands_out(self) -> bool:
        """Whether the interval does not hold zero."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def differences(model: ModelResults, reference: ModelResults) -> tuple[Difference, ...]:
    """Return one model less another on the data sets that both have, the suite's first."""
    return tuple(
        difference(model.results[key], reference.results[key])
        for key in ordered_keys([model])
        if key in reference.results
    )


def ordered_keys(models: Sequence[ModelResults]) -> list[str]:
    """Return the keys of all data sets that a model has a result on, the suite's first."""
    found = {key for model in models for key in model.results}
    return [*(key for key in _NAMES if key in found), *sorted(found - _NAMES.keys())]


def compare_results(
    measured: Mapping[str, DatasetResult], published: Mapping[str, DatasetResult]
) -> tuple[Difference, ...]:
    """Return the difference on every data set of the suite that either side has a result on.

    Args:
        measured: by key.
        published: by key.
    """
    keys = [key for key in _NAMES if key in measured or key in published]
    return tuple(difference(measured.get(key), published.get(key)) for key in keys)


def difference(one: DatasetResult | None, other: DatasetResult | None) -> Difference:
    """Return one result less another on the same data set, at least one of which is there.

    Where both say what they did image by image, the interval is of the paired differences; otherwise it is two standard
    errors of the difference of two accuracies.
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
    """Return which of a result's metrics is its main one: the suite's, or one of the same value."""
    entry = next((one for one in SUITE if one.key == result.key), None)
    if entry is not None:
        return entry.main_metric
    names = dict.fromkeys((*_USUAL, *result.metrics))
    return next(name for name in names if result.metrics.get(name) == result.main_metric)


def _variance(score: float, num_images: int | None) -> float:
    """Return the variance of an accuracy over so many images; other metrics may lie outside, and have none known."""
    return math.inf if not num_images else max(0.0, score * (1 - score)) / num_images


UNKNOWN_FILTER = frozenset(f"mobileclip{size}" for size in ("_s3", "_s4", "2_s0", "2_s2", "2_b", "2_s3", "2_s4"))
"""Models that we resize for with the bilinear filter of open_clip's tags, while their release's README takes bicubic.

Which of the two their figures had is published nowhere.
"""


def published_models() -> tuple[str, ...]:
    """Return the names of the models whose results are published."""
    return tuple(_figures("published.json"))


def published_results(model: str) -> dict[str, DatasetResult]:
    """Return a model's published results by key: the 38 data sets, and those of MobileCLIP2 nine more.

    Those of `NOT_EVALUATED` are left out.

    Args:
        model: its name, such as `mobileclip_s2`.

    Raises:
        ValueError: if none are published of it.

    Source: the results that come with the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691).
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
        name: such as `mobileclip_s2`; see `published_models`.

    Raises:
        ValueError: if no results of it are published.

    Source: the tables of models in the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691),
        which measured latencies on an iPhone 12 Pro Max.
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
    """Return a model's name where its published figures may have been measured with a filter; None otherwise.

    Args:
        model: a name; None for a model without.
        interpolation: the filter that resizes pictures; None for the model's own.

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
