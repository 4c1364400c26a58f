"""The tables of a report, as values: models, differences, robustness, languages, every result, and its origin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import attrs

from mobileclip.evaluation.metrics.intervals import Interval, mean_interval
from mobileclip.evaluation.report.values import Coverage, ModelResults, reference_of
from mobileclip.evaluation.results import DatasetResult, compare_result, suite_average
from mobileclip.evaluation.suite import SUITE

IMAGENET = "imagenet1k"
ROBUSTNESS = ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "imagenet-o", "objectnet")

_ROBUSTNESS_NOTE = (
    "Top-1 accuracy in per cent, and below it the difference from ImageNet in percentage points. ImageNet-A, "
    "ImageNet-O, ImageNet-R and ObjectNet choose among fewer classes than ImageNet does: compare models in one column, "
    "not columns. The mean is over the data sets in the table, or there is none."
)
_MOST_SIDE_BY_SIDE = 4
_RESULTS_NOTE = (
    "Main metrics in per cent, below them where the true one lies with 95 % confidence. Intervals of two models may "
    "overlap where that of their difference does not hold zero."
)
_DIFFERENCES_NOTE = (
    "Where both models were asked about the same images, the interval is of their paired differences; otherwise it is "
    "two standard errors of the difference of two accuracies. Of twenty intervals of equally good models, one does not "
    "hold zero."
)
_NAMES = {entry.key: entry.name for entry in SUITE}
# What counts outside the suite, so that another metric of the same value is not named in its place.
_USUAL = ("acc1", "mean_recall@1")
_UNKNOWN = "not recorded"
ENGLISH = "en"
_RECALL, _KS = "image_retrieval_recall@", (1, 5, 10)


@attrs.frozen(kw_only=True)
class Cell:
    """One cell.

    Args:
        text: what it says; empty where there is nothing to say.
        small: a second line in smaller letters.
    """

    text: str = ""
    small: str = ""


@attrs.frozen(kw_only=True)
class Column:
    """One column.

    Args:
        title: above it.
        is_number: whether its cells are numbers, which stand at the right.
        small: a second line in smaller letters.
    """

    title: str
    is_number: bool = True
    small: str = ""


@attrs.frozen(kw_only=True)
class Table:
    """A table.

    Args:
        title: above it.
        columns: from left to right; the first one names the rows.
        rows: from top to bottom, each with a cell for every column.
        notes: below it, a paragraph each.

    Raises:
        ValueError: if a row has more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} of {self.title!r} has {len(row)} cells for {len(self.columns)} columns")

    def turned(self, corner: str) -> Table:
        """Return the table with its rows as columns, all of them numbers.

        Args:
            corner: what the rows are now, which stands above their names.
        """
        names, *others = zip(*self.rows, strict=True)
        heads = (Column(title=corner, is_number=False), *(Column(title=one.text, small=one.small) for one in names))
        rows = (
            (Cell(text=column.title, small=column.small), *cells)
            for column, cells in zip(self.columns[1:], others, strict=True)
        )
        return attrs.evolve(self, columns=heads, rows=tuple(rows))


def per_cent(value: float | None, *, digits: int = 1) -> str:
    """Return a fraction of one in per cent, and nothing for None."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def points(value: float, *, digits: int = 1) -> str:
    """Return a difference of fractions of one in percentage points, with its sign."""
    text = f"{100 * value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text if any(digit in text for digit in "123456789") else text.lstrip("+\N{MINUS SIGN}")


def models_table(models: Sequence[ModelResults]) -> Table:
    """Return what the models are, how fast they are, and their averages, where the suite was evaluated."""
    columns = {
        "model": [Cell(text=model.name) for model in models],
        "results": [Cell(text=_origin(model)) for model in models],
        "parameters, millions": [Cell(text=_millions(model.num_parameters)) for model in models],
        "latency, ms, image + text": [Cell(text=_latency(model), small=_devices(model)) for model in models],
    }
    if any(IMAGENET in model.results for model in models):
        columns["ImageNet, %"] = [_score_cell(model, IMAGENET) for model in models]
    averages = [_average(model) for model in models]
    notes: tuple[str, ...] = ()
    if any(average is not None for average in averages):
        columns["average of 38, %"] = [Cell(text=per_cent(average)) for average in averages]
        notes = ("The average is over the main metrics of all 38 data sets, or there is none.",)
    return Table(
        title="Models",
        columns=tuple(Column(title=title, is_number=number > 1) for number, title in enumerate(columns)),
        rows=tuple(zip(*columns.values(), strict=True)),
        notes=notes,
    )


def robustness_table(models: Sequence[ModelResults]) -> Table | None:
    """Return ImageNet beside its harder relatives, each with the drop from ImageNet; None where nobody has two of them.

    Source: Recht et al. 2019 (v2), Hendrycks et al. 2021 (-A and -O; -R), Wang et al. 2019 (Sketch), Barbu et al. 2019
        (ObjectNet).
    """
    shown = [model for model in models if IMAGENET in model.results and any(key in model.results for key in ROBUSTNESS)]
    keys = [key for key in ROBUSTNESS if any(key in model.results for model in shown)]
    if not shown:
        return None
    columns = [[Cell(text=model.name, small=model.source) for model in shown]]
    for key in (IMAGENET, *keys):
        scores = [_score(model, key) for model in shown]
        cells = [
            Cell(text=per_cent(score), small="" if key == IMAGENET else _drop(score, _score(model, IMAGENET)))
            for model, score in zip(shown, scores, strict=True)
        ]
        columns.append(cells)
    means = [_mean_drop(model, keys) for model in shown]
    columns.append([Cell(text="" if mean is None else points(mean)) for mean in means])
    titles = ("model", "ImageNet", *(_NAMES[key].removeprefix("ImageNet ") for key in keys), "mean drop")
    return Table(
        title="Robustness",
        columns=tuple(Column(title=title, is_number=number > 0) for number, title in enumerate(titles)),
        rows=tuple(zip(*columns, strict=True)),
        notes=(_ROBUSTNESS_NOTE,),
    )


def results_table(models: Sequence[ModelResults]) -> Table:
    """Return the main metric of every model on every data set, those of the suite first.

    A data set is a row, unless there are more models than stand side by side, and fewer data sets than models.
    """
    known = {key: result for model in reversed(models) for key, result in model.results.items()}
    keys = [entry.key for entry in SUITE if entry.key in known] + sorted(key for key in known if key not in _NAMES)
    rows = []
    for key in keys:
        cells = [_score_cell(model, key) for model in models]
        name = Cell(text=_NAMES.get(key, known[key].dataset), small=readable(metric_name(known[key], key)))
        rows.append((name, *cells))
    averages = [_average(model) for model in models]
    if any(average is not None for average in averages):
        cells = [Cell(text=per_cent(one)) for one in averages]
        rows.append((Cell(text="average of 38"), *cells))
    table = Table(
        title="All results",
        columns=(
            Column(title="data set", is_number=False),
            *(Column(title=model.name, small=model.source) for model in models),
        ),
        rows=tuple(rows),
        notes=(_RESULTS_NOTE,),
    )
    return table.turned("model") if len(models) > max(_MOST_SIDE_BY_SIDE, len(keys)) else table


@attrs.frozen(kw_only=True)
class Difference:
    """One model less another one on a data set.

    Args:
        dataset: its name in tables.
        metric: what counts.
        value: of the model, as a fraction of one.
        reference: of the model that it is compared with.
        interval: where the true difference lies with 95 % confidence; None where nobody knows how many images there
            were.
        num_images: that both were asked about, or that the model was; None where that is not known.
    """

    dataset: str
    metric: str
    value: float
    reference: float
    interval: Interval | None
    num_images: int | None


def compared_pairs(models: Sequence[ModelResults]) -> tuple[tuple[ModelResults, ModelResults], ...]:
    """Return every measured model with the first of them, and models with the published ones that they name.

    Models without a data set in common are left out.
    """
    measured = [model for model in models if model.source == "measured"]
    pairs = [(model, measured[0]) for model in measured[1:]]
    for model in models:
        reference = reference_of(model, models)
        if reference is not None and (model, reference) not in pairs:
            pairs.append((model, reference))
    return tuple((one, other) for one, other in pairs if one.results.keys() & other.results.keys())


def differences(model: ModelResults, reference: ModelResults) -> tuple[Difference, ...]:
    """Return one model less another on the data sets that both have, the suite's first."""
    both = [key for key in model.results if key in reference.results]
    suite = [entry.key for entry in SUITE if entry.key in both]
    return tuple(_difference(model, reference, key) for key in (*suite, *sorted(set(both) - set(suite))))


def mean_difference(model: ModelResults, reference: ModelResults, keys: Sequence[str]) -> Interval | None:
    """Return where the difference of two models' mean over data sets lies, or None where one of them has no interval.

    Args:
        model: with results on all of them.
        reference: likewise.
        keys: of the data sets, at least one.
    """
    rows = [_difference(model, reference, key) for key in keys]
    intervals = [row.interval for row in rows if row.interval is not None]
    if len(intervals) < len(keys):
        return None
    return mean_interval([row.value - row.reference for row in rows], intervals)


def differences_table(model: ModelResults, reference: ModelResults) -> Table:
    """Return one model less another, in percentage points, with what both reach."""
    return Table(
        title=f"{model.name} against {reference.name}",
        columns=(
            Column(title="data set", is_number=False),
            Column(title="difference, points", small="95 % interval"),
            Column(title=f"{model.name}, %"),
            Column(title=f"{reference.name}, %"),
            Column(title="images"),
        ),
        rows=tuple(
            (
                Cell(text=row.dataset, small=readable(row.metric)),
                Cell(text=points(row.value - row.reference), small=_ends(row.interval) or "interval unknown"),
                Cell(text=per_cent(row.value)),
                Cell(text=per_cent(row.reference)),
                Cell(text="unknown" if row.num_images is None else f"{row.num_images:,}"),
            )
            for row in differences(model, reference)
        ),
        notes=(_DIFFERENCES_NOTE,),
    )


def metric_name(result: DatasetResult, key: str) -> str:
    """Return which of a result's metrics is its main one: the suite's, or one of the same value."""
    entry = next((one for one in SUITE if one.key == key), None)
    if entry is not None:
        return entry.main_metric
    names = dict.fromkeys((*_USUAL, *result.metrics))
    return next(name for name in names if result.metrics.get(name) == result.main_metric)


def language_table(models: Sequence[ModelResults]) -> Table | None:
    """Return every model in every language against the first one in English, the ceiling; None without languages.

    A data set has languages where its results have parts, one of which is called `en`.

    Args:
        models: in the order of the run: the first that was measured in English is the ceiling.
    """
    rows = [
        row
        for task, ceiling in _ceilings(models).items()
        for model in models
        for key in model.results
        if key.startswith(f"{task}/") and (model is not ceiling or key != f"{task}/{ENGLISH}")
        for row in (_language_row(model, ceiling, key, f"{task}/{ENGLISH}"),)
    ]
    if not rows:
        return None
    columns = (
        Column(title="language", is_number=False),
        Column(title="model", is_number=False),
        Column(title="mean R@1, points to English", small="95 % interval, paired"),
        *(Column(title=f"R@{k}, % of English", small="% of % in English") for k in _KS),
    )
    return Table(title="Languages, with English as the ceiling", columns=columns, rows=tuple(rows))


def provenance_table(models: Sequence[ModelResults]) -> Table:
    """Return when and with what each model was measured.

    Args:
        models: those that were measured here.
    """
    titles = ("model", "when", "version", "device", "SHA-256 of the weights")
    return Table(
        title="When and with what",
        columns=tuple(Column(title=title, is_number=False) for title in titles),
        rows=tuple((Cell(text=model.name), *_provenance(model)) for model in models),
    )


def coverage_table(models: Sequence[ModelResults]) -> Table:
    """Return how many images of each data set were used and left out, with the reasons.

    Args:
        models: those that were measured here.
    """
    titles = (("data set", False), ("model", False), ("images used", True), ("left out", True), ("reasons", False))
    return Table(
        title="Images used and left out",
        columns=tuple(Column(title=title, is_number=is_number) for title, is_number in titles),
        rows=tuple(
            (Cell(text=result.dataset), Cell(text=model.name), *_coverage(model.coverage.get(key), result))
            for model in models
            for key, result in model.results.items()
        ),
        notes=("What is left out counts in no metric. A shard that breaks off counts once, however much it held.",),
    )


def readable(metric: str) -> str:
    """Return the name of a metric as people say it."""
    known = {
        "acc1": "top-1 accuracy",
        "mean_per_class_recall": "mean per-class recall",
        "mean_recall@1": "mean recall at 1",
        "main_metric": "main metric",
        "jaccard_score_10-12": "Jaccard index",
        "F1-macro_all": "macro F1",
        "acc_worst_region": "worst region",
        "acc_top5_wg": "worst group, top 5",
        "acc_wg": "worst group",
    }
    return known.get(metric, metric)


def _difference(model: ModelResults, reference: ModelResults, key: str) -> Difference:
    result, expected = _counted(model, key), _counted(reference, key)
    entry = next((one for one in SUITE if one.key == key), None)
    num_images, interval = result.num_images, None
    one, other = model.outcomes.get(key), reference.outcomes.get(key)
    found = None if one is None or other is None else one.compared_with(other)
    if found is not None:
        num_images, interval = found.num_questions, found.interval
    else:
        row = compare_result(key, "", result, expected, None if entry is None else entry.num_images)
        if row.difference is not None and math.isfinite(row.noise):
            interval = Interval(row.difference - row.noise, row.difference + row.noise)
    return Difference(
        dataset=result.dataset if entry is None else entry.name,
        metric=metric_name(result, key),
        value=result.main_metric,
        reference=expected.main_metric,
        interval=interval,
        num_images=num_images,
    )


def _counted(model: ModelResults, key: str) -> DatasetResult:
    """Return a result with the number of images that it is from, where the model knows it."""
    coverage, result = model.coverage.get(key), model.results[key]
    return result if coverage is None else attrs.evolve(result, num_images=coverage.num_used)


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def _ceilings(models: Sequence[ModelResults]) -> dict[str, ModelResults]:
    """Return the model that is the ceiling, by key of the data set."""
    found: dict[str, ModelResults] = {}
    for model in models:
        for key in model.results:
            task, _, language = key.rpartition("/")
            if language == ENGLISH and task in model.results:
                found.setdefault(task, model)
    return found


def _language_row(model: ModelResults, ceiling: ModelResults, key: str, english: str) -> tuple[Cell, ...]:
    own, best = model.results[key], ceiling.results[english]
    found = None
    if key in model.outcomes and english in ceiling.outcomes:
        found = model.outcomes[key].compared_with(ceiling.outcomes[english])
    between = "other pictures" if found is None else _ends(found.interval)
    recalls = [(own.metrics.get(f"{_RECALL}{k}"), best.metrics.get(f"{_RECALL}{k}")) for k in _KS]
    return (
        Cell(text=own.dataset),
        Cell(text=model.name),
        Cell(text=points(own.main_metric - best.main_metric), small=between),
        *(_share(value, most) for value, most in recalls),
    )


def _share(value: float | None, most: float | None) -> Cell:
    """Return how much of what English reaches is reached; nothing where nobody knows, or English reaches nothing."""
    if value is None or not most:
        return Cell()
    return Cell(text=per_cent(value / most, digits=0), small=f"{per_cent(value)} of {per_cent(most)}")


def _provenance(model: ModelResults) -> tuple[Cell, ...]:
    origin = model.provenance
    if origin is None:
        return (Cell(text=_UNKNOWN), Cell(), Cell(), Cell())
    return (
        Cell(text=f"{origin.when:%Y-%m-%d %H:%M %Z}".strip()),
        Cell(text=origin.version),
        Cell(text=origin.device or _UNKNOWN),
        Cell(text=origin.weights_sha256 or _UNKNOWN),
    )


def _coverage(coverage: Coverage | None, result: DatasetResult) -> tuple[Cell, ...]:
    if coverage is None:
        # The result alone may know the numbers, but not the reasons.
        used, left_out = (_count(number) for number in (result.num_images, result.num_skipped))
        return (Cell(text=used), Cell(text=left_out), Cell(text=_UNKNOWN if result.num_skipped != 0 else ""))
    reasons = ", ".join(f"{count:,} {_words(reason)}" for reason, count in coverage.left_out.items())
    return (Cell(text=_count(coverage.num_used)), Cell(text=_count(coverage.num_left_out)), Cell(text=reasons))


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _words(reason: str) -> str:
    """Return a reason as people say it; those of images that cannot be decoded start alike."""
    return reason.removeprefix("image_").replace("_", " ")


def _score(model: ModelResults, key: str) -> float | None:
    return model.results[key].main_metric if key in model.results else None


def _score_cell(model: ModelResults, key: str) -> Cell:
    """Return a model's result on a data set, with its interval where the images' outcomes are known."""
    outcomes = model.outcomes.get(key)
    if outcomes is None:
        return Cell(text=per_cent(_score(model, key)))
    found = outcomes.interval
    return Cell(text=per_cent(_score(model, key)), small=f"{per_cent(found.low)} to {per_cent(found.high)}")


def _average(model: ModelResults) -> float | None:
    return suite_average(model.results) if model.results.keys() >= _NAMES.keys() else None


def _drop(score: float | None, imagenet: float | None) -> str:
    return "" if score is None or imagenet is None else points(score - imagenet)


def _mean_drop(model: ModelResults, keys: Sequence[str]) -> float | None:
    scores = [_score(model, key) for key in keys]
    present = [score for score in scores if score is not None]
    return fmean(present) - model.results[IMAGENET].main_metric if len(present) == len(keys) else None


def _origin(model: ModelResults) -> str:
    return "measured here" if model.source == "measured" else "published"


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def _latency(model: ModelResults) -> str:
    return "; ".join(f"{one.image_ms:.1f} + {one.text_ms:.1f}" for one in model.latencies)


def _devices(model: ModelResults) -> str:
    loads = ("" if one.load is None else f", load {one.load:.1f}" for one in model.latencies)
    return "; ".join(f"{one.device}{load}" for one, load in zip(model.latencies, loads, strict=True))
