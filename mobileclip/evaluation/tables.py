"""The tables of a report: models, results, classes, confusion matrices, errors, differences and provenance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from statistics import fmean

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.evaluation.intervals import Interval, proportion_interval
from mobileclip.evaluation.results import (
    DatasetResult,
    ModelResults,
    Predictions,
    differences,
    metric_name,
    ordered_keys,
    suite_average,
)
from mobileclip.evaluation.suite import SUITE

IMAGENET = "imagenet1k"
ROBUSTNESS = ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "imagenet-o", "objectnet")

_ROBUSTNESS_NOTE = (
    "Top-1 accuracy in per cent, and below it the difference from ImageNet in percentage points. ImageNet-A, "
    "ImageNet-O, ImageNet-R and ObjectNet have fewer classes than ImageNet: compare models within a "
    "column, not across columns. The mean drop is over all data sets in the table except ImageNet; the cell "
    "is empty if a model lacks one of these data sets."
)
_MOST_SIDE_BY_SIDE = 4
_RESULTS_NOTE = (
    "Main metrics in per cent; below each, its 95 % confidence interval and n, the number of images. "
    "The intervals of two models may overlap even if the interval of their difference excludes zero."
)
_DIFFERENCES_NOTE = (
    "If both models were evaluated on the same images, the interval is for the paired differences; otherwise, the "
    "interval is the difference plus or minus two standard errors. For equally good models, one in twenty intervals "
    "excludes zero."
)
_NAMES = {entry.key: entry.name for entry in SUITE}
_UNKNOWN = "not recorded"
ENGLISH = "en"
_RECALL, _KS = "image_retrieval_recall@", (1, 5, 10)


@attrs.frozen(kw_only=True)
class Cell:
    """One cell of a `Table`.

    Args:
        text: text of the cell; empty for an empty cell.
        small: second line in a smaller font; empty for no second line.
    """

    text: str = ""
    small: str = ""


@attrs.frozen(kw_only=True)
class Column:
    """One column of a `Table`.

    Args:
        title: title of the column.
        is_number: whether the cells are numbers, which are right-aligned.
        small: second line in a smaller font; empty for no second line.
    """

    title: str
    is_number: bool = True
    small: str = ""


@attrs.frozen(kw_only=True)
class Table:
    """A table for a report or the terminal.

    Args:
        title: title of the table.
        columns: columns from left to right; the first column names the rows.
        rows: rows from top to bottom, each with one cell per column.
        notes: paragraphs below the table.

    Raises:
        ValueError: if the number of cells in a row differs from the number of columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of {self.title!r} has {len(row)} cells, expected {len(self.columns)}, one per column"
                )

    def transpose(self, corner: str) -> Table:
        """Return the transposed table, with number columns after the first column.

        Args:
            corner: title of the first column of the transposed table.
        """
        names, *others = zip(*self.rows, strict=True)
        heads = (Column(title=corner, is_number=False), *(Column(title=one.text, small=one.small) for one in names))
        rows = (
            (Cell(text=column.title, small=column.small), *cells)
            for column, cells in zip(self.columns[1:], others, strict=True)
        )
        return attrs.evolve(self, columns=heads, rows=tuple(rows))


def per_cent(value: float | None, *, digits: int = 1) -> str:
    """Format a fraction as per cent; return an empty string for None."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def points(value: float, *, digits: int = 1) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    text = f"{100 * value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text if any(digit in text for digit in "123456789") else text.lstrip("+\N{MINUS SIGN}")


def models_table(models: Sequence[ModelResults]) -> Table:
    """Return the table of models: parameters, latency, ImageNet accuracy and, if complete, the suite average."""
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
        notes = ("The average needs the main metrics of all 38 data sets.",)
    return Table(
        title="Models",
        columns=tuple(Column(title=title, is_number=number > 1) for number, title in enumerate(columns)),
        rows=tuple(zip(*columns.values(), strict=True)),
        notes=notes,
    )


def robustness_table(models: Sequence[ModelResults]) -> Table | None:
    """Return the table of ImageNet and its variants; None if no model has results on ImageNet and on a variant.

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
    """Return the table of each model's main metric on each data set, with the data sets of the suite first.

    Each data set is a row. If there are more models than fit side by side and fewer data sets than models, each model
    is a row.
    """
    known = {key: result for model in reversed(models) for key, result in model.results.items()}
    keys = ordered_keys(models)
    rows = []
    for key in keys:
        cells = [_score_cell(model, key) for model in models]
        name = Cell(text=_NAMES.get(key, known[key].dataset), small=readable(metric_name(known[key])))
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
    return table.transpose("model") if len(models) > max(_MOST_SIDE_BY_SIDE, len(keys)) else table


_MOST_CLASSES, _MOST_CONFUSED, _MOST_ERRORS = 50, 20, 20
_MARGIN_NOTE = "The margin is the score of the predicted class minus the score of the true class."


def prediction_tables(models: Sequence[ModelResults]) -> list[Table]:
    """Return, for each measured result, the tables of accuracy by class, of confusions and of the worst errors.

    A result without predicted classes has only a table of the worst images.
    """
    tables = []
    for model in models:
        for result in model.results.values():
            title = f"{model.name} on {result.dataset}"
            if result.predictions is not None:
                tables += [class_table(title, result.predictions), confusion_table(title, result.predictions)]
                tables.append(errors_table(title, result.predictions))
            elif result.outcomes is not None and not result.parts:
                tables.append(_worst_table(title, result.outcomes.pairs))
    return [table for table in tables if table.rows]


def class_table(title: str, predictions: Predictions) -> Table:
    """Return the table of recall and precision of each class, with the lowest recall first; at most fifty classes."""
    counts, said, right = _by_class(predictions)
    recall = right / np.maximum(counts, 1)
    worst = [one for one in np.argsort(recall, kind="stable") if counts[one]]
    rows = []
    for one in worst[:_MOST_CLASSES]:
        found = proportion_interval(right[one], counts[one])
        rows.append(
            (
                Cell(text=predictions.class_names[one]),
                Cell(text=per_cent(recall[one]), small=f"{per_cent(found.low)} to {per_cent(found.high)}"),
                Cell(text=per_cent(right[one] / said[one]) if said[one] else ""),
                Cell(text=f"{counts[one]:,}"),
            )
        )
    return Table(
        title=f"{title}: classes",
        columns=(
            Column(title="class", is_number=False),
            Column(title="recall, %", small="95 % interval"),
            Column(title="precision, %"),
            Column(title="n"),
        ),
        rows=tuple(rows),
        notes=_more("classes", len(worst), _MOST_CLASSES),
    )


def confusion_table(title: str, predictions: Predictions) -> Table:
    """Return the confusion matrix; if there are more than twenty classes, only the twenty with the most errors."""
    counts, said, right = _by_class(predictions)
    num_wrong = counts + said - 2 * right
    seen = np.flatnonzero(counts + said)
    shown = np.sort(seen[np.argsort(-num_wrong[seen], kind="stable")[:_MOST_CONFUSED]])
    matrix = np.zeros((len(counts), len(counts)), dtype=np.int64)
    np.add.at(matrix, (predictions.labels, predictions.predicted), 1)
    names = [predictions.class_names[one] for one in shown]
    return Table(
        title=f"{title}: confusion matrix",
        columns=(Column(title="true class / predicted", is_number=False), *(Column(title=name) for name in names)),
        rows=tuple(
            (Cell(text=name), *(Cell(text=f"{matrix[one, other]:,}" if matrix[one, other] else "") for other in shown))
            for name, one in zip(names, shown, strict=True)
        ),
        notes=_more("classes", len(seen), _MOST_CONFUSED),
    )


def errors_table(title: str, predictions: Predictions) -> Table:
    """Return the table of misclassified images, with the largest margin first; at most twenty images."""
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    surest = wrong[np.argsort(-predictions.margin[wrong], kind="stable")]
    return Table(
        title=f"{title}: errors",
        columns=tuple(
            Column(title=name, is_number=name == "margin") for name in ("image", "true class", "predicted", "margin")
        ),
        rows=tuple(
            (
                Cell(text=predictions.keys[one]),
                Cell(text=predictions.class_names[predictions.labels[one]]),
                Cell(text=predictions.class_names[predictions.predicted[one]]),
                Cell(text=f"{predictions.margin[one]:.3f}"),
            )
            for one in surest[:_MOST_ERRORS]
        ),
        notes=(_MARGIN_NOTE, *_more("errors", len(surest), _MOST_ERRORS)),
    )


def _worst_table(title: str, values: Iterable[tuple[str, float]]) -> Table:
    wrong = sorted(((value, key) for key, value in values if value < 1), key=lambda one: one[0])
    return Table(
        title=f"{title}: errors",
        columns=(Column(title="image", is_number=False), Column(title="correct, %")),
        rows=tuple((Cell(text=key), Cell(text=per_cent(value))) for value, key in wrong[:_MOST_ERRORS]),
        notes=_more("errors", len(wrong), _MOST_ERRORS),
    )


def _by_class(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each class, the number of images, of predictions and of correct predictions."""
    labels, predicted, size = predictions.labels, predictions.predicted, len(predictions.class_names)
    right = labels[labels == predicted]
    counts, said, found = (np.bincount(one, minlength=size) for one in (labels, predicted, right))
    return counts, said, found


def _more(what: str, total: int, most: int) -> tuple[str, ...]:
    return (f"The worst {most} of {total:,} {what}.",) if total > most else ()


def compared_pairs(models: Sequence[ModelResults]) -> tuple[tuple[ModelResults, ModelResults], ...]:
    """Return the pairs to compare: each further measured model with the first, and each model with its reference.

    The result excludes pairs without a common data set.
    """
    measured = [model for model in models if model.source == "measured"]
    pairs = [(model, measured[0]) for model in measured[1:]]
    for model in models:
        for reference in models:
            if reference.name == model.reference and (model, reference) not in pairs:
                pairs.append((model, reference))
    return tuple((one, other) for one, other in pairs if one.results.keys() & other.results.keys())


def differences_table(model: ModelResults, reference: ModelResults) -> Table:
    """Return the table of differences between two models in percentage points, with both models' results."""
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
                Cell(text=points(row.difference or 0), small=_ends(row.interval) or "interval unknown"),
                Cell(text=per_cent(row.value)),
                Cell(text=per_cent(row.reference)),
                Cell(text="unknown" if row.num_images is None else f"{row.num_images:,}"),
            )
            for row in differences(model, reference)
        ),
        notes=(_DIFFERENCES_NOTE,),
    )


def language_table(models: Sequence[ModelResults]) -> Table | None:
    """Return the table of results by language relative to English; None if no data set has languages.

    A data set has languages if its result has one partial result per language, including `en`.

    Args:
        models: results of models in the order of the run; the first model with English results is the upper bound.
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
        Column(title="mean R@1, points vs English", small="95 % interval, paired"),
        *(Column(title=f"R@{k}, % of English", small="own % of English %") for k in _KS),
    )
    return Table(title="Languages, with English as the ceiling", columns=columns, rows=tuple(rows))


def provenance_table(models: Sequence[ModelResults]) -> Table:
    """Return the table of the date, library version, device and weights of each measured model.

    Args:
        models: measured results, without published results.
    """
    titles = ("model", "when", "version", "device", "SHA-256 of the weights")
    return Table(
        title="Date and software",
        columns=tuple(Column(title=title, is_number=False) for title in titles),
        rows=tuple((Cell(text=model.name), *_provenance(model)) for model in models),
    )


def coverage_table(models: Sequence[ModelResults]) -> Table:
    """Return the table of used and skipped images per data set, with the reasons for skipping.

    Args:
        models: measured results, without published results.
    """
    titles = (("data set", False), ("model", False), ("images used", True), ("left out", True), ("reasons", False))
    return Table(
        title="Images used and left out",
        columns=tuple(Column(title=title, is_number=is_number) for title, is_number in titles),
        rows=tuple(
            (Cell(text=result.dataset), Cell(text=model.name), *_coverage(result))
            for model in models
            for result in model.results.values()
        ),
        notes=("Metrics ignore skipped samples. A truncated shard counts as one skipped sample.",),
    )


def readable(metric: str) -> str:
    """Return the display name of a metric."""
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


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def _ceilings(models: Sequence[ModelResults]) -> dict[str, ModelResults]:
    """Return, by key of the data set, the first model with English results."""
    found: dict[str, ModelResults] = {}
    for model in models:
        for key in model.results:
            task, _, language = key.rpartition("/")
            if language == ENGLISH and task in model.results:
                found.setdefault(task, model)
    return found


def _language_row(model: ModelResults, ceiling: ModelResults, key: str, english: str) -> tuple[Cell, ...]:
    own, best = model.results[key], ceiling.results[english]
    found = own.outcomes.compared_with(best.outcomes) if own.outcomes and best.outcomes else None
    between = "different images" if found is None else _ends(found.interval)
    recalls = [(own.metrics.get(f"{_RECALL}{k}"), best.metrics.get(f"{_RECALL}{k}")) for k in _KS]
    return (
        Cell(text=own.dataset),
        Cell(text=model.name),
        Cell(text=points(own.main_metric - best.main_metric), small=between),
        *(_share(value, most) for value, most in recalls),
    )


def _share(value: float | None, most: float | None) -> Cell:
    """Return the ratio of a recall to the English recall; an empty cell if unknown or if the English recall is 0."""
    if value is None or not most:
        return Cell()
    return Cell(text=per_cent(value / most, digits=0), small=f"{per_cent(value)} of {per_cent(most)}")


def _provenance(model: ModelResults) -> tuple[Cell, ...]:
    evaluated = max((one.evaluated for one in model.results.values()), key=lambda one: one.get("when", ""), default={})
    if not evaluated:
        return (Cell(text=_UNKNOWN), Cell(), Cell(), Cell())
    when = f"{datetime.fromisoformat(evaluated['when']):%Y-%m-%d %H:%M %Z}".strip()
    others = (evaluated["version"], evaluated.get("device") or _UNKNOWN, evaluated["weights_sha256"])
    return (Cell(text=when), *(Cell(text=one) for one in others))


def _coverage(result: DatasetResult) -> tuple[Cell, ...]:
    reasons = ", ".join(f"{count:,} {_words(reason)}" for reason, count in result.left_out.items())
    reasons = reasons or ("" if result.num_skipped == 0 else _UNKNOWN)
    return (Cell(text=_count(result.num_images)), Cell(text=_count(result.num_skipped)), Cell(text=reasons))


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _words(reason: str) -> str:
    """Return the display text of a skip reason, without the prefix `image_` of decoding errors."""
    return reason.removeprefix("image_").replace("_", " ")


def _score(model: ModelResults, key: str) -> float | None:
    return model.results[key].main_metric if key in model.results else None


def _score_cell(model: ModelResults, key: str) -> Cell:
    """Return the cell of a model's result, with the interval and number of images if `outcomes` is known."""
    result = model.results.get(key)
    if result is None or result.outcomes is None:
        return Cell(text=per_cent(_score(model, key)))
    low, high = attrs.astuple(result.outcomes.interval)
    return Cell(
        text=per_cent(result.main_metric), small=f"{per_cent(low)} to {per_cent(high)}, n {_count(result.size)}"
    )


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
