"""Line charts as an image: at most two panels per row, one legend, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mobileclip import storage
from mobileclip.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 2
# In inches: pages show a two-column image about 748 pixels wide, so that 9 points are 12 pixels.
_WIDTH, _ONE_WIDTH, _HEIGHT = 7.48, 5.0, 3.1
_LEGEND_LINE = 0.2
_DOTS_PER_INCH = 160
# The palette of Okabe and Ito, safe for colour-blind readers, without its yellow, which is pale on this background.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
_MARKERS = "osD^vPX"
_BACKGROUND = "#f3f1ec"
_MOST_MARKERS = 12
_MOST_TICKS = 8


@attrs.frozen(kw_only=True)
class Line:
    """A line of a panel.

    Args:
        x: x values of the points.
        y: y values of the points, as many as x values.
        label: name in the legend. Lines with the same label have the same colour and marker in all panels. An empty
            label does not appear in the legend.
        star: index of the point to mark with a star; None for no star.
        names: texts next to the points, one per point; empty for no texts.
        spread: half the height of a band around each point; empty for no band. NaN, as for a single measurement, makes
            the point hollow.
        bars: ends of each point's error bar in y; empty for no error bars.
        is_joined: whether a line joins the points.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    star: int | None = None
    names: Sequence[str] = ()
    spread: Sequence[float] = ()
    bars: Sequence[tuple[float, float]] = ()
    is_joined: bool = True


@attrs.frozen(kw_only=True)
class Panel:
    """A panel of a chart. Panels with the same `y_label` have the same y range.

    Args:
        lines: lines of the panel.
        title: text above the panel.
        x_label: label of the x axis.
        y_label: label of the y axis.
        is_log: whether the x axis is logarithmic; if there are at most 8 x values, each x value has a tick.
        from_zero: whether the y axis begins at 0.
    """

    lines: Sequence[Line]
    x_label: str
    y_label: str
    title: str = ""
    is_log: bool = False
    from_zero: bool = False


def write_chart(panels: Sequence[Panel], path: storage.AnyPath, *, title: str = "") -> None:
    """Write panels to a PNG file, two per row, with one legend below the panels if lines have several labels.

    Args:
        panels: panels to draw, at least one.
        path: path or URL of the file.
        title: text above all panels.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed; the message contains the install command.
    """
    with needed("a plot", "report"):
        from matplotlib.figure import Figure

    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    num_columns = min(_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    width = _WIDTH if num_columns > 1 else _ONE_WIDTH
    height = _HEIGHT * num_rows + _LEGEND_LINE * (math.ceil(len(labels) / 2) if len(labels) > 1 else 0)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=_BACKGROUND)
    places = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        for line in panel.lines:
            _draw(axes, line, labels.index(line.label))
        _finish(axes, panel)
    for label in {panel.y_label for panel in panels}:
        compared = [axes for axes, panel in zip(places, panels, strict=False) if panel.y_label == label]
        low, high = zip(*(axes.get_ylim() for axes in compared), strict=True)
        for axes in compared:
            axes.set_ylim(min(low), max(high))
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    if len(labels) > 1:
        handles = {line.get_label(): line for axes in places for line in axes.lines}
        known = [label for label in labels if label in handles]
        figure.legend(
            [handles[label] for label in known], known, loc="outside lower center", ncols=2, frameon=False, fontsize=9
        )
    if title:
        figure.suptitle(title, fontsize=10, fontweight="bold", wrap=True)
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH)


def _draw(axes: Axes, line: Line, number: int) -> None:
    color, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    style = "none" if not line.is_joined else "solid" if number < len(_COLOURS) else "dashed"
    every = max(1, len(line.x) // _MOST_MARKERS)
    axes.plot(
        line.x,
        line.y,
        label=line.label,
        linewidth=1.4,
        linestyle=style,
        color=color,
        marker=marker,
        markersize=4,
        markevery=every,
    )
    if line.spread:
        low, high = ([y + sign * half for y, half in zip(line.y, line.spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(line.x, low, high, color=color, alpha=0.16, linewidth=0)
        single = [(x, y) for x, y, half in zip(line.x, line.y, line.spread, strict=True) if math.isnan(half)]
        x, y = zip(*single, strict=True) if single else ((), ())
        axes.scatter(x, y, s=16, marker=marker, facecolors=_BACKGROUND, edgecolors=color, zorder=3)
    if line.bars:
        below, above = ([abs(y - ends[i]) for y, ends in zip(line.y, line.bars, strict=True)] for i in (0, 1))
        axes.errorbar(line.x, line.y, yerr=(below, above), fmt="none", ecolor=color, elinewidth=1, capsize=3, zorder=2)
    if line.star is not None:
        axes.plot(line.x[line.star], line.y[line.star], marker="*", markersize=11, color=color, linestyle="none")
    for name, *point in zip(line.names, line.x, line.y, strict=bool(line.names)):
        side = {"ha": "right", "xytext": (-6, 4)} if point[0] == max(line.x) else {"xytext": (6, 4)}
        axes.annotate(name, (point[0], point[1]), textcoords="offset points", parse_math=False, fontsize=8, **side)
        axes.margins(0.2)  # room for the names


def _finish(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9, wrap=True)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_facecolor(_BACKGROUND)
    axes.grid(alpha=0.3)
    points = sorted({x for line in panel.lines for x in line.x})
    if panel.is_log:
        axes.set_xscale("log")
        if len(points) <= _MOST_TICKS:
            axes.set_xticks(points, [f"{x:,g}" for x in points])
            axes.minorticks_off()
    elif all(float(x).is_integer() for x in points):
        axes.locator_params(axis="x", integer=True)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
