"""A model's results beside those that it is compared with, a bar for every data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobileclip.evaluation.comparison import ComparisonRow
from mobileclip.evaluation.report.figures import Theme, drawable, new_figure, shortened
from mobileclip.evaluation.report.table import per_cent, points
from mobileclip.evaluation.report.values import ModelResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _TOP, _BOTTOM, _WIDTH = 0.24, 0.8, 0.5, 8.4


def draw_bars(rows: Sequence[ComparisonRow], model: ModelResults, reference: ModelResults, theme: Theme) -> Figure:
    """Return a picture with a bar for each data set, a tick where the other model is, and the difference.

    What differs by more than the noise is bold and has an arrow.

    Args:
        rows: from `differences`, at least one.
        model: whose bars they are.
        reference: whose ticks they are.
        theme: the colours.
    """
    height = _TOP + _BOTTOM + _ROW * len(rows)
    figure = new_figure(_WIDTH, height, theme)
    axes = figure.add_axes((0.255, _BOTTOM / height, 0.53, _ROW * len(rows) / height))
    axes.set_facecolor(theme.paper)
    places = range(len(rows))
    measured = [100 * (row.measured or 0.0) for row in rows]
    published = [100 * (row.published or 0.0) for row in rows]
    axes.barh(places, measured, height=0.5, color=theme.measured, label=drawable(f"{model.name}, {model.source}"))
    axes.scatter(
        published,
        places,
        marker="|",
        s=110,
        linewidth=2.4,
        color=theme.published,
        zorder=3,
        label=drawable(f"{reference.name}, {reference.source}"),
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(places, [drawable(shortened(row.name, 28)) for row in rows], fontsize=8.5, parse_math=False)
    axes.tick_params(axis="y", length=0, colors=theme.ink)
    axes.tick_params(axis="x", labelsize=8.5, length=3, colors=theme.faint)
    axes.grid(axis="x", color=theme.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("main metric, per cent", fontsize=8.5, color=theme.faint)
    _write_numbers(axes, rows, theme)
    figure.text(
        0.012,
        1 - 0.28 / height,
        drawable(f"{model.name} beside {reference.name}"),
        fontsize=11,
        color=theme.ink,
        parse_math=False,
    )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=2,
        fontsize=8.5,
        frameon=False,
        labelcolor=theme.ink,
        borderaxespad=0.2,
    )
    return figure


def arrow(row: ComparisonRow) -> str:
    """Return an arrow up or down where a difference exceeds the noise, and nothing where it does not."""
    if not row.stands_out or row.difference is None:
        return ""
    return "\N{BLACK UP-POINTING TRIANGLE}" if row.difference > 0 else "\N{BLACK DOWN-POINTING TRIANGLE}"


def _write_numbers(axes: Axes, rows: Sequence[ComparisonRow], theme: Theme) -> None:
    for place, row in enumerate(rows):
        assert row.difference is not None, "rows have both sides"
        axes.text(111, place, per_cent(row.measured), fontsize=8.5, color=theme.ink, ha="right", va="center")
        axes.text(
            127,
            place,
            points(row.difference),
            fontsize=8.5,
            color=theme.ink if row.stands_out else theme.faint,
            fontweight="bold" if row.stands_out else "normal",
            ha="right",
            va="center",
        )
        axes.text(129, place, arrow(row), fontsize=7, color=theme.ink, va="center")
    axes.text(111, -1.05, "score", fontsize=8.5, color=theme.faint, ha="right", va="center")
    axes.text(127, -1.05, "difference", fontsize=8.5, color=theme.faint, ha="right", va="center")
