"""Curves of one or more runs as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobileclip.training.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def plot_curves(
    runs: Mapping[str, Path],
    path: Path,
    *,
    metrics: Sequence[str] = ("contrastive", "distillation", "logit_scale", "learning_rate"),
) -> None:
    """Draw metrics over steps, one panel a metric and one line a run, to a PNG file.

    Args:
        runs: names for the legend to metrics files.
        path: the PNG to write.
        metrics: names of the values to draw, as in the files.

    Raises:
        ValueError: if there is no run, or no file has a metric of that name.
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'mobileclip[quickstart]' or pip install matplotlib", name=error.name
        ) from error

    lines = {name: read_metrics(metrics_path) for name, metrics_path in runs.items()}
    if not lines or not metrics:
        raise ValueError("nothing to draw: give at least one run and one metric")
    figure = Figure(figsize=(4.2 * len(metrics), 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        drawn = {name: [line for line in run if metric in line] for name, run in lines.items()}
        if not any(drawn.values()):
            known = sorted({key for run in lines.values() for line in run for key in line})
            raise ValueError(f"no run has logged {metric!r}; logged are: {', '.join(known)}")
        for name, run in drawn.items():
            axes.plot([line["step"] for line in run], [line[metric] for line in run], label=name, linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_title(metric.replace("_", " "))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
