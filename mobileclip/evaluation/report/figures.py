"""How pictures look: colours that people with every kind of sight can tell apart, and files of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import attrs

from mobileclip.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 160
_MISSING = "\N{WHITE SQUARE}"


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
