"""The picture of latency against accuracy: a line for every way to compute, a mark for every model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, cast

from benchmarks.harness import Row
from benchmarks.latency_ways import Way
from benchmarks.rivals import PUBLISHED, Size
from mobileclip.evaluation.published import published_results
from mobileclip.evaluation.report.figures import Theme, new_figure, rule_axes
from mobileclip.evaluation.suite import SUITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN: dict[Way, tuple[str, str]] = {
    "release": ("the release's code, eager float32", "o"),
    "eager": ("mobileclip, eager float32", "s"),
    "optimized_fp32": ("mobileclip, optimised float32", "^"),
    "optimized_bf16": ("mobileclip, optimised bfloat16", "D"),
    "optimized_int8": ("mobileclip, optimised int8", "P"),
    "openvino_bf16": ("mobileclip, exported to OpenVINO bfloat16", "v"),
}


def accuracies(latencies: Sequence[Row]) -> dict[Way, list[tuple[str, float, float]]]:
    """Return, for every way that is drawn, the models with the time of an image and a text, and their accuracy.

    The accuracy is the mean of the 38 data sets that is published of the weights: it is the same for every way, since
    all compute the same embeddings.

    Args:
        latencies: those of single images and texts of random lengths count.

    Source: MobileCLIP (arXiv 2311.17049), table 7; MobileCLIP2 (arXiv 2508.20691).
    """
    keys = [entry.key for entry in SUITE]
    single = {
        (one.case["way"], one.case["model"], one.case["inputs"].split()[-1]): one.values["time"].number
        for one in latencies
        if one.failure is None and one.case["batch"] == "1" and one.case["inputs"] != "short text"
    }
    found: dict[Way, list[tuple[str, float, float]]] = {}
    for way in _DRAWN:
        for model in dict.fromkeys(model for _, model, _ in single):
            image, text = single.get((way, model, "image")), single.get((way, model, "text"))
            if image is None or text is None:
                continue
            name = PUBLISHED[cast("Size", model)].open_clip
            figures = published_results(name.lower().replace("-", "_"))
            found.setdefault(way, []).append((name, image + text, fmean(figures[key].main_metric for key in keys)))
    return found


def draw_accuracy(latencies: Sequence[Row], *, title: str, theme: Theme) -> Figure:
    """Return published accuracy over measured latency.

    Args:
        latencies: of all cases.
        title: what it was measured on.
        theme: the colours.
    """
    figure = new_figure(7.2, 4.6, theme)
    axes = figure.add_axes((0.09, 0.12, 0.89, 0.74))
    axes.set_facecolor(theme.paper)
    axes.set_xscale("log")
    found = accuracies(latencies)
    for way, points in found.items():
        label, marker = _DRAWN[way]
        color = theme.published if way == "release" else theme.measured
        times, scores = [time for _, time, _ in points], [100 * score for *_, score in points]
        axes.plot(times, scores, f"{marker}-", color=color, markerfacecolor=theme.paper, linewidth=1.2, label=label)
    for model, time, score in found.get("release", []):
        axes.annotate(f"  {model}", (time, 100 * score), color=theme.ink, fontsize=9, va="center")
    axes.margins(x=0.25)  # for the longest name
    low, high = axes.get_xlim()
    ticks = [value for value in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low <= value <= high]
    rule_axes(axes, ticks, theme)
    axes.set_xlabel("latency of one image + one text, ms (logarithmic), measured here", color=theme.faint, fontsize=9.5)
    figure.text(0.09, 0.95, "published average of 38 data sets, per cent", color=theme.ink, fontsize=11)
    figure.text(0.09, 0.895, title, color=theme.faint, fontsize=9, parse_math=False)
    if found:
        axes.legend(loc="upper left", fontsize=8.5, frameon=False, labelcolor=theme.ink)
    return figure
