"""Curves of one or more runs as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mobileclip import storage
from mobileclip.extras import needed
from mobileclip.training.records.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

    from mobileclip.storage import AnyPath

_TERMS = ("contrastive", "distillation")
_ALWAYS = ("logit_scale", "learning_rate")
# What evaluations call their main numbers; the others would fill a wall.
_MAIN = ("acc1", "mean_recall@1", "recall_at_1", "top-1", "R@1", "measured")
_MOST_EVALUATED = 4
_COLUMNS = 4

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
    with needed("a plot", "report"):
        from matplotlib.figure import Figure

    lines = {name: read_metrics(metrics_path) for name, metrics_path in runs.items()}
    logged = [line for run in lines.values() for line in run]
    chosen = _usual(logged) if metrics is None else tuple(metrics)
    if not lines or not chosen:
        raise ValueError("nothing to draw: give at least one run and one metric")
    num_columns = min(_COLUMNS, len(chosen))
    num_rows = math.ceil(len(chosen) / num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.4 * num_rows), layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, metric in zip(panels, chosen, strict=False):
        _draw(axes, metric, lines, logged)
        if axes is panels[0] or _is_evaluated(metric, logged):
            axes.legend(fontsize="small")
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


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


def _draw(axes: Axes, metric: str, lines: Mapping[str, Lines], logged: Lines) -> None:
    drawn = {name: [line for line in run if metric in line] for name, run in lines.items()}
    if not any(drawn.values()):
        known = sorted({key for line in logged for key in line})
        raise ValueError(f"no run has logged {metric!r}; logged are: {', '.join(known)}")
    for name, run in drawn.items():
        steps, values = [line["step"] for line in run], [line[metric] for line in run]
        if not run or not _is_evaluated(metric, run):
            axes.plot(steps, values, label=name, linewidth=1.2)
            continue
        best = max(range(len(values)), key=values.__getitem__)
        label = f"{name}: best {values[best]:.3g}, step {steps[best]:,.0f}"
        (curve,) = axes.plot(steps, values, label=label, linewidth=1.2, marker=".")
        axes.plot(steps[best], values[best], marker="*", markersize=11, color=curve.get_color(), linestyle="none")
    axes.set_xlabel("step")
    axes.set_title(metric.replace("_", " "))
    axes.grid(alpha=0.3)
