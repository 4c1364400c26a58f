"""The tables of a report: the models, their robustness, and every result."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mobileclip.evaluation.report.differences import (
    SIGNIFICANT,
    clear_best,
    clear_best_average,
    differences,
    metric_name,
    paired,
)
from mobileclip.evaluation.report.table import Cell, Column, Mark, Table, marked, per_cent, points
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.results import suite_average
from mobileclip.evaluation.suite import SUITE

IMAGENET = "imagenet1k"
ROBUSTNESS = ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "imagenet-o", "objectnet")

_ROBUSTNESS_NOTE = (
    "Top-1 accuracy in per cent, and below it the difference from ImageNet in percentage points. ImageNet-A, "
    "ImageNet-O, ImageNet-R and ObjectNet choose among fewer classes than ImageNet does: compare models in one column, "
    "not columns. The mean is over the data sets in the table, or there is none."
)
_RESULTS_NOTE = (
    "Main metrics in per cent, below them where the true one lies with 95 % confidence. Bold is what is better than "
    "all others of its row by more than the noise: by a paired test on the same images, at a p-value below 0.05, or by "
    "two standard errors of the difference of two accuracies where the images of one are not known."
)
_PAIRED_NOTE = (
    "In percentage points, with 95 % intervals. The p-value says how likely a difference as large would be between "
    "models that are equally good (McNemar's exact test, or flipped signs where answers are right in part); a "
    "difference is marked where it is below 0.05. Of twenty comparisons of equal models, one is marked by chance."
)
_NAMES = {entry.key: entry.name for entry in SUITE}


def models_table(models: Sequence[ModelResults]) -> Table:
    """Return what the models are, how fast they are, and their averages."""
    columns = ("model", "results", "parameters", "latency, image + text", "ImageNet", "average of 38")
    averages = [_average(model) for model in models]
    rows = zip(
        [Cell(text=model.name) for model in models],
        [Cell(text=_origin(model)) for model in models],
        [Cell(text=_millions(model.num_parameters)) for model in models],
        [Cell(text=_latency(model), small=_devices(model)) for model in models],
        marked((_score_cell(model, IMAGENET) for model in models), clear_best(models, IMAGENET)),
        marked(
            (Cell(text=per_cent(value) or _part(model)) for model, value in zip(models, averages, strict=True)),
            clear_best_average(models),
        ),
        strict=True,
    )
    return Table(
        title="Models",
        columns=tuple(Column(title=title, is_number=number > 1) for number, title in enumerate(columns)),
        rows=tuple(rows),
        notes=("In per cent. The average is over the main metrics of all 38 data sets, or there is none.",),
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
        columns.append(marked(cells, clear_best(shown, key)))
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
    """Return the main metric of every model on every data set, those of the suite first."""
    known = {key: result for model in models for key, result in model.results.items()}
    keys = [entry.key for entry in SUITE if entry.key in known] + sorted(key for key in known if key not in _NAMES)
    rows = []
    for key in keys:
        cells = marked((_score_cell(model, key) for model in models), clear_best(models, key))
        name = Cell(text=_NAMES.get(key, known[key].dataset), small=readable(metric_name(known[key], key)))
        rows.append((name, *cells))
    averages = [_average(model) for model in models]
    if any(average is not None for average in averages):
        cells = marked((Cell(text=per_cent(one)) for one in averages), clear_best_average(models))
        rows.append((Cell(text="average of 38"), *cells))
    return Table(
        title="All results",
        columns=(
            Column(title="data set", is_number=False),
            *(Column(title=model.name, small=model.source) for model in models),
        ),
        rows=tuple(rows),
        notes=(_RESULTS_NOTE,),
    )


def paired_table(models: Sequence[ModelResults]) -> Table | None:
    """Return every measured model beside the first one, image by image; None where no two were asked the same."""
    measured = [model for model in models if model.outcomes]
    rows = []
    for model in measured[1:]:
        for key, result in model.results.items():
            found = paired(model, measured[0], key)
            if found is None:
                continue
            mark: Mark = ("better" if found.difference > 0 else "worse") if found.p_value < SIGNIFICANT else ""
            low, high = (points(end) for end in (found.interval.low, found.interval.high))
            rows.append(
                (
                    Cell(text=_NAMES.get(key, result.dataset), small=readable(metric_name(result, key))),
                    Cell(text=model.name),
                    Cell(text=points(found.difference), mark=mark, small=f"{low} to {high}"),
                    Cell(text=f"{found.p_value:.3f}" if found.p_value >= 0.001 else "below 0.001"),
                    Cell(text=f"{found.num_questions:,}"),
                )
            )
    if not rows:
        return None
    return Table(
        title=f"Beside {measured[0].name}, on the same images",
        columns=(
            Column(title="data set", is_number=False),
            Column(title="model", is_number=False),
            Column(title="difference", small="95 % interval"),
            Column(title="p-value"),
            Column(title="images"),
        ),
        rows=tuple(rows),
        notes=(_PAIRED_NOTE,),
    )


def differences_table(model: ModelResults, reference: ModelResults) -> Table | None:
    """Return a model's results beside those it is compared with; None where they have no data set in common."""
    rows = []
    for row in differences(model, reference):
        assert row.difference is not None
        mark: Mark = ("better" if row.difference > 0 else "worse") if row.stands_out else ""
        noise = per_cent(row.noise, digits=2) if row.noise < 1 else "unknown"
        rows.append(
            (
                Cell(text=row.name, small=readable(row.metric)),
                Cell(text=per_cent(row.measured)),
                Cell(text=per_cent(row.published)),
                Cell(text=points(row.difference, digits=2), mark=mark),
                Cell(text=noise),
            )
        )
    if not rows:
        return None
    return Table(
        title=f"{model.name} beside {reference.name}",
        columns=(
            Column(title="data set", is_number=False),
            Column(title=model.name, small=model.source),
            Column(title=reference.name, small=reference.source),
            Column(title="difference"),
            Column(title="noise"),
        ),
        rows=tuple(rows),
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


def _part(model: ModelResults) -> str:
    return f"{sum(key in model.results for key in _NAMES)} of {len(_NAMES)}"


def _drop(score: float | None, imagenet: float | None) -> str:
    return "" if score is None or imagenet is None else points(score - imagenet)


def _mean_drop(model: ModelResults, keys: Sequence[str]) -> float | None:
    scores = [_score(model, key) for key in keys]
    present = [score for score in scores if score is not None]
    return fmean(present) - model.results[IMAGENET].main_metric if len(present) == len(keys) else None


def _origin(model: ModelResults) -> str:
    return "measured here" if model.source == "measured" else "published"


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f} M"


def _latency(model: ModelResults) -> str:
    return "; ".join(f"{one.image_ms:.1f} + {one.text_ms:.1f} ms" for one in model.latencies)


def _devices(model: ModelResults) -> str:
    return "; ".join(one.device for one in model.latencies)
