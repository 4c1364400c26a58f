"""The picture of latency against accuracy: a line for every way to compute, beside the release's in the same runtime.

Command:   python -m benchmarks.latency_plot
Result:    docs/latency.png, of docs/latency.json, which `python -m benchmarks latency` measured
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, cast

import attrs

from benchmarks.harness import Results, Row, Value
from benchmarks.latency_ways import Way
from benchmarks.rivals import PUBLISHED, Size
from mobileclip.charts import draw_bars, put_legend_below
from mobileclip.evaluation.published import published_results
from mobileclip.evaluation.report.plots import LIGHT, Theme, new_figure, rule_axes, to_png
from mobileclip.evaluation.suite import SUITE
from mobileclip.serialization import from_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = Path(__file__).parents[1] / "docs" / "latency.json"
# What is drawn and how: each way of this library after that of the release in the same runtime.
_DRAWN: dict[Way, tuple[str, str, str]] = {
    "release": ("the release, eager float32", "o", "-"),
    "eager": ("mobileclip, eager float32", "o", "-"),
    "release_openvino": ("the release in OpenVINO, float32", "^", "--"),
    "openvino": ("mobileclip in OpenVINO, float32", "^", "--"),
    "optimized_fp32": ("mobileclip, optimised float32", "s", "-"),
    "release_openvino_bf16": ("the release in OpenVINO, bfloat16", "v", ":"),
    "openvino_bf16": ("mobileclip in OpenVINO, bfloat16", "v", ":"),
    "optimized_bf16": ("mobileclip, optimised bfloat16", "D", "-"),
    "optimized_int8": ("mobileclip, optimised int8", "P", "-"),
}
_Point = tuple[str, float, float, tuple[float, float] | None]


def accuracies(latencies: Sequence[Row]) -> dict[Way, list[_Point]]:
    """Return, for every way that is drawn, the models with the time of an image and a text, and their accuracy.

    Beside them stand the sums of both times' quartiles, where these are known.

    The accuracy is the mean of the 38 data sets that is published of the weights: it is the same for every way, since
    all compute the same embeddings.

    Args:
        latencies: those of single images and texts of random lengths count.

    Source: MobileCLIP (arXiv 2311.17049), table 7; MobileCLIP2 (arXiv 2508.20691).
    """
    keys = [entry.key for entry in SUITE]
    single = {
        (one.case["way"], one.case["model"], one.case["inputs"].split()[-1]): one.values["time"]
        for one in latencies
        if one.failure is None and one.case["batch"] == "1" and one.case["inputs"] != "short text"
    }
    found: dict[Way, list[_Point]] = {}
    for way in _DRAWN:
        for model in dict.fromkeys(model for _, model, _ in single):
            image, text = single.get((way, model, "image")), single.get((way, model, "text"))
            if image is None or text is None:
                continue
            name = PUBLISHED[cast("Size", model)].open_clip
            figures = published_results(name.lower().replace("-", "_"))
            score, ends = fmean(figures[key].main_metric for key in keys), _ends(image, text)
            found.setdefault(way, []).append((name, image.number + text.number, score, ends))
    return found


def _ends(image: Value, text: Value) -> tuple[float, float] | None:
    if image.low is None or text.low is None or image.high is None or text.high is None:
        return None
    return image.low + text.low, image.high + text.high


def draw_accuracy(latencies: Sequence[Row], *, title: str, theme: Theme) -> Figure:
    """Return published accuracy over measured latency.

    Args:
        latencies: of all cases.
        title: what it was measured on.
        theme: the colours.
    """
    figure = new_figure(7.2, 5.6, theme)
    axes = figure.add_axes((0.09, 0.3, 0.89, 0.58))
    axes.set_facecolor(theme.paper)
    axes.set_xscale("log")
    found = accuracies(latencies)
    has_bars = any(ends for points in found.values() for *_, ends in points)
    for way, points in found.items():
        label, marker, stroke = _DRAWN[way]
        color = theme.published if way.startswith("release") else theme.measured
        times, scores = [time for _, time, *_ in points], [100 * score for _, _, score, _ in points]
        (line,) = axes.plot(times, scores, marker=marker, linestyle=stroke, color=color, label=label, linewidth=1.2)
        line.set(markerfacecolor=theme.paper, markersize=5)
        ends = [one for *_, one in points if one is not None]
        if len(ends) == len(points):
            draw_bars(axes, times, scores, ends, color, along="x")
    for model, time, score, _ in found.get("release", []):
        axes.annotate(f"  {model}", (time, 100 * score), color=theme.ink, fontsize=9, va="center")
    axes.margins(x=0.25)  # for the longest name
    low, high = axes.get_xlim()
    ticks = [value for value in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low <= value <= high]
    rule_axes(axes, ticks, theme)
    axes.set_xlabel("latency of one image + one text, ms (logarithmic), measured here", color=theme.faint, fontsize=9.5)
    axes.set_ylabel("average of 38 data sets, per cent, published", color=theme.faint, fontsize=9.5)
    figure.text(
        0.09,
        0.955,
        "Medians, with the quartiles of image and text added up" if has_bars else "Medians",
        color=theme.ink,
        fontsize=11,
    )
    figure.text(0.09, 0.91, title, color=theme.faint, fontsize=9, parse_math=False)
    put_legend_below(axes, ncols=2, fontsize=8.5, labelcolor=theme.ink)
    return figure


def kept() -> Results:
    """Return the latencies of the page; without compilers, `optimize` has eager forms alone, and is left out."""
    found = from_json(KEPT.read_text(encoding="utf-8"), Results)
    rows = tuple(row for row in found.rows if found.choices["compiled"] or not row.case["way"].startswith("optimized"))
    return attrs.evolve(found, rows=rows)


if __name__ == "__main__":
    latencies = kept()
    picture = draw_accuracy(latencies.rows, title=str(latencies.machine), theme=LIGHT)
    KEPT.with_suffix(".png").write_bytes(to_png(picture))
