"""Accuracy over latency, a panel for every device: what was measured on two of them cannot be compared.

Every point has its interval, and no line joins models that are not to be told apart. Colours are those that people with
every kind of sight can tell apart.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING

import attrs

from mobileclip.charts import draw_bars, put_legend_below
from mobileclip.evaluation.encoding import Latency, Source
from mobileclip.evaluation.metrics.intervals import Interval, mean_interval
from mobileclip.evaluation.report.tables import mean_difference
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.suite import SUITE
from mobileclip.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 160
_MISSING = "\N{WHITE SQUARE}"
_POWERS = range(-3, 6)
# Of the ticks; the second ones for a range that has few of the first.
_DIGITS = ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
_FEW_TICKS = 4
# In inches.
_WIDTH, _PLOT, _BOTTOM, _LINE = 5.0, 3.4, 0.85, 0.22
_LEFT, _AXES_WIDTH = 0.13, 0.85
_TITLE_SIZE, _SUBTITLE_SIZE = 11, 9.5
_BARS = "bars are 95 % intervals; no line joins models that are not to be told apart"


@attrs.frozen(kw_only=True)
class Theme:
    """The colours of a picture.

    Args:
        paper: behind everything.
        ink: of what is written.
        faint: of what matters less.
        rule: of lines that separate.
        measured: of what was measured here, and of what is wrong.
        published: of what is published, and of what is right.
    """

    paper: str
    ink: str
    faint: str
    rule: str
    measured: str
    published: str


# Blue and vermilion, the two of the palette of Okabe and Ito that differ most for everybody.
LIGHT = Theme(paper="#ffffff", ink="#1b1e23", faint="#5d6470", rule="#dcdfe4", measured="#d55e00", published="#0072b2")
DARK = Theme(paper="#16181d", ink="#e6e8ec", faint="#a0a7b4", rule="#343a45", measured="#ff9a4d", published="#56b4e9")


def require_matplotlib() -> None:
    """Make sure that plots can be drawn.

    Raises:
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
    """
    with needed("a plot", "report"):
        import matplotlib.figure  # noqa: F401  whether it is there


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Return an empty figure.

    Args:
        width: in inches.
        height: in inches.
        theme: its colours.

    Raises:
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=theme.paper)


def rule_axes(axes: Axes, ticks: Sequence[float], theme: Theme) -> None:
    """Draw the grid and the two lines of a plot, with plain numbers below it.

    Args:
        axes: of the plot.
        ticks: where the horizontal axis has numbers.
        theme: its colours.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.tick_params(colors=theme.faint, labelsize=9, length=3)
    axes.grid(color=theme.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.rule)


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return stream.getvalue()


def to_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file, the same bytes for the same figure; text in it needs no font."""
    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "mobileclip", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def drawable(text: str) -> str:
    """Return text in one line of which the font of pictures has every character; a square stands for the others."""
    known = _known_characters()
    line = " ".join(text.split())
    return "".join(one if ord(one) in known else _MISSING for one in line)


@cache
def _known_characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


@attrs.frozen(kw_only=True)
class Point:
    """A model in a panel.

    Args:
        name: of the model.
        source: of its accuracy.
        total_ms: image and text together, in milliseconds.
        score: mean of its main metrics, as a fraction of one.
        interval: of the score, with 95 % confidence; None where nobody knows of how many images it is.
    """

    name: str
    source: Source
    total_ms: float
    score: float
    interval: Interval | None

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval, or the score itself, in per cent."""
        found = self.interval or Interval(self.score, self.score)
        return 100 * found.low, 100 * found.high


@attrs.frozen(kw_only=True)
class Panel:
    """The models whose latency is known on one device.

    Args:
        device: what was measured.
        source: whether the latencies were measured here or published.
        score_title: what the scores are.
        points: a point for each model.
        front: numbers of the points that are better, by more than the noise, than all that are as fast, the fastest
            first.
        loads: of the machine, while each of them was measured.
    """

    device: str
    source: Source
    score_title: str
    points: tuple[Point, ...]
    front: tuple[int, ...]
    loads: tuple[float, ...] = ()


def latency_panels(models: Sequence[ModelResults]) -> tuple[Panel, ...]:
    """Return a panel for every device; its scores are over the data sets that all its models have in common.

    A device whose models have none in common has no panel.

    Args:
        models: those without latencies are in no panel.
    """
    devices = dict.fromkeys((one.device, one.source) for model in models for one in model.latencies)
    panels = (_panel(device, source, models) for device, source in devices)
    return tuple(panel for panel in panels if panel is not None)


def draw_latency(panel: Panel, theme: Theme) -> Figure:
    """Return accuracy over latency on one device, with 95 % intervals; the line joins the models of the front."""
    where = "published latency" if panel.source == "published" else "latency measured here"
    load = f", load average {min(panel.loads):.1f} to {max(panel.loads):.1f}" if panel.loads else ""
    titles = _wrapped(f"{panel.score_title}, per cent", _TITLE_SIZE)
    lines = (*titles, *_wrapped(_BARS, _SUBTITLE_SIZE), *_wrapped(f"{where}{load}: {panel.device}", _SUBTITLE_SIZE))
    top = _LINE * (len(lines) + 1)
    height = _BOTTOM + _PLOT + top
    figure = new_figure(_WIDTH, height, theme)
    axes = figure.add_axes((_LEFT, _BOTTOM / height, _AXES_WIDTH, _PLOT / height))
    _write_heading(figure, lines, len(titles), theme)
    _frame(axes, panel, theme)
    front = [(panel.points[index].total_ms, 100 * panel.points[index].score) for index in panel.front]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=theme.faint, linewidth=1, zorder=1, label="better than all faster")
    for source, marker, title in (("published", "o", "published accuracy"), ("measured", "D", "measured here")):
        chosen = [one for one in panel.points if one.source == source]
        color = theme.published if source == "published" else theme.measured
        if not chosen:
            continue
        times, scores = [one.total_ms for one in chosen], [100 * one.score for one in chosen]
        draw_bars(axes, times, scores, [one.ends for one in chosen], color)
        face = theme.paper if source == "published" else color
        axes.scatter(
            times, scores, s=26, marker=marker, facecolor=face, edgecolor=color, linewidth=1.8, zorder=3, label=title
        )
    put_legend_below(axes, ncols=3, fontsize=9, labelcolor=theme.ink, columnspacing=1.4, handletextpad=0.5)
    middle = (axes.get_xlim()[0] * axes.get_xlim()[1]) ** 0.5
    for one in panel.points:
        is_left = one.total_ms < middle
        axes.annotate(
            drawable(one.name),
            (one.total_ms, 100 * one.score),
            xytext=(6 if is_left else -6, 4),
            textcoords="offset points",
            horizontalalignment="left" if is_left else "right",
            fontsize=8.5,
            color=theme.ink,
            parse_math=False,
            clip_on=True,
        )
    return figure


def _frame(axes: Axes, panel: Panel, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(theme.paper)
    axes.set_xscale("log")
    times, scores = [one.total_ms for one in panel.points], [end for one in panel.points for end in one.ends]
    axes.set_xlim(min(times) / 1.45, max(times) * 1.9)
    margin = max(1.0, 0.12 * (max(scores) - min(scores)))
    axes.set_ylim(max(min(scores) - margin, -0.4 * margin), max(scores) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    rule_axes(axes, _ticks(*axes.get_xlim()), theme)
    axes.set_xlabel("latency of image + text, ms (logarithmic)", color=theme.faint, fontsize=9.5)
    axes.set_ylabel("per cent", color=theme.faint, fontsize=9.5)


def _write_heading(figure: Figure, lines: Sequence[str], num_titles: int, theme: Theme) -> None:
    """Write the title, and below it what was measured, in as many lines as they need."""
    height = figure.get_size_inches()[1]
    for number, line in enumerate(lines):
        is_title = number < num_titles
        figure.text(
            _LEFT,
            1 - _LINE * (number + 0.9) / height,
            line,
            color=theme.ink if is_title else theme.faint,
            fontsize=_TITLE_SIZE if is_title else _SUBTITLE_SIZE,
            parse_math=False,
        )


def _wrapped(text: str, size: float) -> list[str]:
    """Return text in lines that are no wider than the plot.

    Args:
        text: one line.
        size: of its letters, in points.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    most, font, line = 72 * _WIDTH * _AXES_WIDTH, FontProperties(size=size), drawable(text)
    for letters in range(len(line), 1, -1):
        lines = textwrap.wrap(line, letters)
        if max(text_to_path.get_text_width_height_descent(one, font, ismath=False)[0] for one in lines) <= most:
            return lines
    return [line]


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers of milliseconds from `low` to `high`, enough to read a logarithmic axis by."""
    coarse, fine = ([digit * 10.0**power for power in _POWERS for digit in digits] for digits in _DIGITS)
    ticks = [tick for tick in coarse if low <= tick <= high]
    return ticks if len(ticks) >= _FEW_TICKS else [tick for tick in fine if low <= tick <= high]


def _panel(device: str, source: Source, models: Sequence[ModelResults]) -> Panel | None:
    timed = [
        (model, latency)
        for model in models
        for latency in model.latencies
        if (latency.device, latency.source) == (device, source)
    ]
    common = set.intersection(*(set(model.results) for model, _ in timed))
    if not common:
        return None
    suite = [entry.key for entry in SUITE]
    # What is published beyond the suite would give other means than the papers'.
    keys = suite if common.issuperset(suite) else sorted(common)
    title = f"average of {len(suite)} data sets" if keys is suite else f"mean of {len(keys)} data sets"
    if len(keys) == 1:
        title = next(iter(timed))[0].results[keys[0]].dataset
    return Panel(
        device=device,
        source=source,
        score_title=title,
        points=tuple(_point(model, latency, keys) for model, latency in timed),
        front=_front(timed, keys),
        loads=tuple(latency.load for _, latency in timed if latency.load is not None),
    )


def _point(model: ModelResults, latency: Latency, keys: Sequence[str]) -> Point:
    scores = [model.results[key].main_metric for key in keys]
    intervals = [one for one in map(model.interval, keys) if one is not None]
    return Point(
        name=model.name,
        source=model.source,
        total_ms=latency.total_ms,
        score=fmean(scores),
        interval=mean_interval(scores, intervals) if len(intervals) == len(keys) else None,
    )


def _front(timed: Sequence[tuple[ModelResults, Latency]], keys: Sequence[str]) -> tuple[int, ...]:
    """Return which models can be told to be better than every one that is at least as fast, the fastest first."""
    means = [fmean(model.results[key].main_metric for key in keys) for model, _ in timed]
    front: list[int] = []
    for index in sorted(range(len(timed)), key=lambda one: (timed[one][1].total_ms, -means[one])):
        found = mean_difference(timed[index][0], timed[front[-1]][0], keys) if front else Interval(1, 1)
        if found is not None and found.low > 0:
            front.append(index)
    return tuple(front)
