"""Paper to put texts and pictures on, measured in inches from its top left corner."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Literal

import attrs

from mobileclip.evaluation.report.figures import Theme, drawable, new_figure
from mobileclip.evaluation.report.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS_PER_INCH = 72
_LINE = 1.35


@attrs.frozen(eq=False)
class Sheet:
    """A figure that things are put on.

    Args:
        width: in inches.
        height: in inches.
        theme: its colours.
    """

    width: float
    height: float
    theme: Theme
    figure: Figure = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "figure", new_figure(self.width, self.height, self.theme))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9.0,
        color: str | None = None,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """Write a line whose top is at `y`.

        Args:
            x: where it starts, or has its middle or its end.
            y: from the top.
            text: characters that the font lacks become squares.
            size: in points.
            color: the theme's ink by default.
            bold: whether it is.
            align: which part of the line is at `x`.
        """
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            drawable(text),
            fontsize=size,
            color=color or self.theme.ink,
            fontweight="bold" if bold else "normal",
            ha=align,
            va="top",
            parse_math=False,
        )

    def rule(self, y: float, left: float, right: float) -> None:
        """Draw a line across."""
        from matplotlib.lines import Line2D

        height = 1 - y / self.height
        line = Line2D([left / self.width, right / self.width], [height, height], color=self.theme.rule, linewidth=0.8)
        self.figure.add_artist(line)

    def bar(self, x: float, y: float, width: float, height: float, *, fraction: float, color: str) -> None:
        """Draw a bar of which a fraction is filled."""
        from matplotlib.patches import Rectangle

        corner = (x / self.width, 1 - (y + height) / self.height)
        for part, fill in ((1.0, self.theme.rule), (fraction, color)):
            size = (part * width / self.width, height / self.height)
            self.figure.add_artist(Rectangle(corner, *size, facecolor=fill, edgecolor="none"))

    def picture(self, x: float, y: float, side: float, picture: Picture | None, *, frame: str | None = None) -> None:
        """Put a picture into the middle of a square; a word says where there is none.

        Args:
            x: left side of the square.
            y: its top.
            side: its length.
            picture: what to show.
            frame: colour of a frame around the square.
        """
        corner = (x / self.width, 1 - (y + side) / self.height)
        axes = self.figure.add_axes((*corner, side / self.width, side / self.height))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor(self.theme.paper)
        for spine in axes.spines.values():
            spine.set_color(frame or self.theme.rule)
            spine.set_linewidth(2.4 if frame else 0.8)
        if picture is None:
            self.text(x + side / 2, y + side / 2 - 0.07, "not readable", size=7, color=self.theme.faint, align="center")
            return
        axes.imshow(picture.pixels(), interpolation="antialiased")
        longest = max(picture.width, picture.height)
        axes.set_xlim((picture.width - longest) / 2 - 0.5, (picture.width + longest) / 2 - 0.5)
        axes.set_ylim((picture.height + longest) / 2 - 0.5, (picture.height - longest) / 2 - 0.5)


def wrapped(text: str, characters: int, lines: int) -> list[str]:
    """Return text in at most so many lines of at most so many characters."""
    return textwrap.wrap(
        drawable(text), characters, max_lines=lines, placeholder=" \N{HORIZONTAL ELLIPSIS}", break_on_hyphens=False
    ) or [""]


def line_height(size: float) -> float:
    """Return from line to line, in inches, for letters of so many points."""
    return size * _LINE / _POINTS_PER_INCH
