"""Line charts as a picture: panels beside each other, each with its lines, and what all pictures of figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from mobileclip import storage
from mobileclip.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
# In points: numbers and label of x stand between the axes and the legend.
_BELOW = 38
# Of a line of the legend, in inches.
_LABEL_HEIGHT = 0.2


@attrs.frozen(kw_only=True)
class Line:
    """A line of a panel.

    Args:
        x: of its points.
        y: of its points, equally many.
        label: for the legend; none where it stands in none.
        marker: of its points, as matplotlib calls it.
        star: number of the point that is marked.
        names: what stands beside its points, as many or none.
        color: of the line, as matplotlib calls it; none for the next of its own.
        spread: half the height of a band around its points, as many or none; not a number, as of a single measurement,
            leaves a point hollow.
        bars: the ends of each point's interval in y, as many or none.
        is_joined: whether a line joins its points.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    marker: str = ""
    star: int | None = None
    names: Sequence[str] = ()
    color: str | None = None
    spread: Sequence[float] = ()
    bars: Sequence[tuple[float, float]] = ()
    is_joined: bool = True


@attrs.frozen(kw_only=True)
class Panel:
    """A panel. Panels with the same `y_label` are compared, and have one scale.

    Args:
        lines: in it.
        title: above it.
        x_label: below it.
        y_label: at its left.
        has_legend: whether the lines' labels stand below it.
        is_log: whether x is drawn by its logarithm, with a number at every point.
        from_zero: whether y begins at 0.
    """

    lines: Sequence[Line]
    x_label: str
    y_label: str
    title: str = ""
    has_legend: bool = False
    is_log: bool = False
    from_zero: bool = False


def write_chart(panels: Sequence[Panel], path: storage.AnyPath, *, size: tuple[float, float] = (4.2, 3.4)) -> None:
    """Write panels to a PNG file, four in a row.

    Args:
        panels: at least one.
        path: of the file, or its URL.
        size: of a panel, in inches; the legend below it comes to that.

    Raises:
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
    """
    with needed("a plot", "report"):
        from matplotlib.figure import Figure

    num_columns = min(_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    num_labels = max((sum(bool(line.label) for line in one.lines) for one in panels if one.has_legend), default=0)
    height = size[1] + _LABEL_HEIGHT * num_labels
    figure = Figure(figsize=(size[0] * num_columns, height * num_rows), layout="constrained")
    places = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        for line in panel.lines:
            style = {"linewidth": 1.2, "marker": line.marker, "color": line.color}
            style["linestyle"] = "solid" if line.is_joined else "none"
            (drawn,) = axes.plot(line.x, line.y, label=line.label, **style)
            _spread(axes, line, drawn.get_color())
            draw_bars(axes, line.x, line.y, line.bars, drawn.get_color())
            if line.star is not None:
                star = {"marker": "*", "markersize": 11, "color": drawn.get_color(), "linestyle": "none"}
                axes.plot(line.x[line.star], line.y[line.star], **star)
            for name, *point in zip(line.names, line.x, line.y, strict=bool(line.names)):
                axes.annotate(name, point, textcoords="offset points", xytext=(6, 4), parse_math=False)
                axes.margins(0.2)  # room for the names
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.grid(alpha=0.3)
        if panel.is_log:
            points = sorted({x for line in panel.lines for x in line.x})
            axes.set_xscale("log")
            axes.set_xticks(points, [f"{x:,g}" for x in points], fontsize="small")
            axes.minorticks_off()
        if panel.from_zero:
            axes.set_ylim(bottom=0)
        if panel.has_legend:
            put_legend_below(axes, fontsize="small")
    for label in {panel.y_label for panel in panels}:
        _one_scale([axes for axes, panel in zip(places, panels, strict=False) if panel.y_label == label])
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def put_legend_below(axes: Axes, **style: Any) -> None:
    """Write the labels of lines below the axes, where they hide none; nothing where no line has one.

    Args:
        axes: that have their label of x.
        style: for matplotlib's legend.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure(root=True)
    if figure is not None and axes.get_legend_handles_labels()[0]:
        below = axes.transAxes + ScaledTranslation(0, -_BELOW / 72, figure.dpi_scale_trans)
        style = {"frameon": False, "borderaxespad": 0, **style}
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, **style)


def draw_bars(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    ends: Sequence[tuple[float, float]],
    color: Any,
    *,
    along: Literal["x", "y"] = "y",
) -> None:
    """Draw the intervals of points.

    Args:
        axes: to draw in.
        x: of the points.
        y: of the points, equally many.
        ends: low and high of each point's interval, as many or none.
        color: of the bars.
        along: which coordinate they are intervals of.
    """
    if ends:
        middle = x if along == "x" else y
        below = [value - low for value, (low, _) in zip(middle, ends, strict=True)]
        above = [high - value for value, (_, high) in zip(middle, ends, strict=True)]
        xerr, yerr = ([below, above], None) if along == "x" else (None, [below, above])
        axes.errorbar(x, y, xerr=xerr, yerr=yerr, fmt="none", ecolor=color, elinewidth=1, capsize=3, zorder=2)


def _one_scale(compared: Sequence[Axes]) -> None:
    low, high = zip(*(axes.get_ylim() for axes in compared), strict=True)
    for axes in compared:
        axes.set_ylim(min(low), max(high))


def _spread(axes: Axes, line: Line, color: Any) -> None:
    """Draw the band of a line, and its hollow points."""
    if line.spread:
        low, high = ([y + sign * half for y, half in zip(line.y, line.spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(line.x, low, high, color=color, alpha=0.16, linewidth=0)
        single = [point for *point, half in zip(line.x, line.y, line.spread, strict=True) if math.isnan(half)]
        x, y = ([point[axis] for point in single] for axis in (0, 1))
        axes.scatter(x, y, s=14, facecolors="white", edgecolors=color, zorder=3)
