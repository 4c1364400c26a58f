"""Plots the training curves of one or more runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobileclip.charts import Line, Panel, write_chart
from mobileclip.training.records.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mobileclip.storage import AnyPath

_TERMS = ("contrastive", "distillation")
_ALWAYS = ("logit_scale", "learning_rate")
# What evaluations call their main numbers; the others would fill a wall.
_MAIN = ("acc1", "mean_recall@1", "recall_at_1", "top-1", "R@1", "measured")
_MOST_EVALUATED = 4

Lines = list[dict[str, float]]


def plot_curves(runs: Mapping[str, AnyPath], path: AnyPath, *, metrics: Sequence[str] | None = None) -> None:
    """Draw metrics over steps, one panel a metric and one line a run, to a PNG file.

    What was evaluated has its best step marked.

    Args:
        runs: names for the legend to metrics files.
        path: the PNG to write.
        metrics: names of the values to draw, as in the files; None for what was evaluated, at most four of it, the
            terms of the loss that are computed, the logit scale and the learning rate.

    Raises:
        ValueError: if there is no run, or no file has a metric of that name.
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
    """
    lines = {name: read_metrics(metrics_path) for name, metrics_path in runs.items()}
    logged = [line for run in lines.values() for line in run]
    chosen = _usual(logged) if metrics is None else tuple(metrics)
    if not lines or not chosen:
        raise ValueError("nothing to draw: give at least one run and one metric")
    panels = [_panel(metric, lines, logged, has_legend=metric == chosen[0]) for metric in chosen]
    write_chart(panels, path)


def _usual(logged: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """Return what there is to see: terms that are not zero throughout, and the main numbers of evaluations."""
    names: dict[str, None] = {}
    evaluated: dict[str, None] = {}
    for line in logged:
        for name, value in line.items():
            if name in _ALWAYS or (name in _TERMS and value != 0):
                names[name] = None
            elif name.endswith(_MAIN) and _is_evaluated(name, [line]):
                evaluated[name] = None
    order = (*list(evaluated)[:_MOST_EVALUATED], *_TERMS, *_ALWAYS)
    return tuple(name for name in order if name in names or name in evaluated)


def _is_evaluated(metric: str, logged: Iterable[Mapping[str, float]]) -> bool:
    """Return whether a metric is of the model and not of a step's batch, whose lines have the loss."""
    return any(metric in line and "loss" not in line and not {*_TERMS, *_ALWAYS} & line.keys() for line in logged)


def _panel(metric: str, lines: Mapping[str, Lines], logged: Lines, *, has_legend: bool) -> Panel:
    drawn = {name: [line for line in run if metric in line] for name, run in lines.items()}
    if not any(drawn.values()):
        known = sorted({key for line in logged for key in line})
        raise ValueError(f"no run has logged {metric!r}; logged are: {', '.join(known)}")
    found = []
    for name, run in drawn.items():
        steps, values = [line["step"] for line in run], [line[metric] for line in run]
        if not run or not _is_evaluated(metric, run):
            found.append(Line(x=steps, y=values, label=name))
            continue
        best = max(range(len(values)), key=values.__getitem__)
        label = f"{name}: best {values[best]:.3g}, step {steps[best]:,.0f}"
        found.append(Line(x=steps, y=values, label=label, marker=".", star=best))
    is_told = has_legend or _is_evaluated(metric, logged)
    return Panel(lines=found, y_label=metric.replace("_", " "), x_label="step", has_legend=is_told)
