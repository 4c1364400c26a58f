"""The tables of a report: the models, their robustness, and every result."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mobileclip.evaluation.report.table import Cell, Column, Table, per_cent, points
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.report.verdicts import Comparison, Row, metric_name
from mobileclip.evaluation.results import suite_average
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
    "overlap where a paired test tells them apart: whether one is better, the verdicts say."
)
_VERDICT_NOTE = (
    "Better and worse are differences that a paired test on the same images finds at a p-value below 0.05 (McNemar's "
    "exact test, or flipped signs where answers are right in part) and whose 95 % interval does not hold zero. Where "
    "the images of one model are not known, as of published results, the interval is two standard errors of the "
    "difference of two accuracies; metrics over the worst of several groups, and macro F1, are noisier than that."
)
_CHANCE_NOTE = "Of twenty comparisons of equally good models, one is called better or worse by chance."
_NAMES = {entry.key: entry.name for entry in SUITE}


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


def verdict_table(comparison: Comparison) -> Table:
    """Return one model against another: on every data set the difference, how sure it is, and the verdict."""
    rows = tuple(
        (
            Cell(text=row.dataset, small=readable(row.metric)),
            Cell(text=row.verdict),
            Cell(text=points(row.difference), small=_interval(row)),
            Cell(text=per_cent(row.model_value)),
            Cell(text=per_cent(row.reference_value)),
            Cell(text="unknown" if row.num_images is None else f"{row.num_images:,}", small=_only(row)),
        )
        for row in comparison.rows
    )
    return Table(
        title=f"{comparison.model} against {comparison.reference}",
        columns=(
            Column(title="data set", is_number=False),
            Column(title="verdict", is_number=False),
            Column(title="difference, points", small="95 % interval"),
            Column(title=f"{comparison.model}, %"),
            Column(title=f"{comparison.reference}, %"),
            Column(
                title="images",
                small="right by one alone" if any(row.gained is not None for row in comparison.rows) else "",
            ),
        ),
        rows=rows,
        notes=(_VERDICT_NOTE, *((_CHANCE_NOTE,) if len(rows) > 1 else ())),
    )


def _interval(row: Row) -> str:
    return "unknown" if row.interval is None else f"{points(row.interval.low)} to {points(row.interval.high)}"


def _only(row: Row) -> str:
    return "" if row.gained is None else f"{row.gained:,} against {row.lost:,}"


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
