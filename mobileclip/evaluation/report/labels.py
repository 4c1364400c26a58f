"""Labels beside points, where they hide neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_FONT_SIZE = 8.5
# In points; a label at the greater distances is joined to its point by a line.
_POINT_RADIUS = 5.0
_DISTANCES = (7.0, 18.0, 30.0)
# Right and left read best, then above and below, then between them.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_OUTSIDE, _UNREADABLE, _MISTAKEN, _LEADER = 1e6, 20.0, 150.0, 40.0
_HORIZONTAL: dict[int, Literal["left", "center", "right"]] = {-1: "right", 0: "center", 1: "left"}
_VERTICAL: dict[int, Literal["top", "center", "bottom"]] = {-1: "top", 0: "center", 1: "bottom"}


@attrs.frozen
class _Place:
    """Where a label is, seen from its point: how far, in points, and in which direction."""

    distance: float
    direction: tuple[int, int]

    @property
    def offset(self) -> tuple[float, float]:
        return self.direction[0] * self.distance, self.direction[1] * self.distance


_PLACES = tuple(_Place(distance, direction) for distance in _DISTANCES for direction in _DIRECTIONS)


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    line: Sequence[tuple[float, float]],
    color: str,
    line_color: str,
    paper: str,
) -> None:
    """Write every point's label where it covers least of what is there already.

    Args:
        axes: of a figure whose size and layout are final.
        points: x, y and label of each, in data coordinates.
        line: corners of a line that is drawn already, in data coordinates.
        color: of the labels.
        line_color: of the lines that join distant labels to their points.
        paper: the colour around letters that cross a line all the same.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None, "axes belong to a figure"
    # A label that is given none makes one whenever it is measured.
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    scale = figure.dpi / 72
    radius = _POINT_RADIUS * scale
    pixels = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [_square(x, y, radius) for x, y in pixels]
    taken += [_square(x, y, scale) for x, y in _along(axes, line, scale)]
    written: list[Bbox] = []
    highest_first = sorted(range(len(points)), key=lambda one: -float(pixels[one][1]))
    for number in highest_first:
        point_x, point_y, text = points[number]
        others = [(float(x), float(y)) for one, (x, y) in enumerate(pixels) if one != number]
        label = axes.annotate(
            text,
            (point_x, point_y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_FONT_SIZE,
            color=color,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground=paper)],
            zorder=4,
        )
        costs = {
            place: _cost(_moved(label, place, renderer), place, (taken, written), others, axes.bbox)
            for place in _PLACES
        }
        best = min(costs, key=lambda place: costs[place])
        written.append(_moved(label, best, renderer))
        if best.distance > _DISTANCES[0]:
            axes.annotate(
                "",
                (point_x, point_y),
                xytext=best.offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": line_color, "linewidth": 0.8, "shrinkB": _POINT_RADIUS},
                zorder=2,
            )


def _square(x: float, y: float, radius: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)


def _along(axes: Axes, line: Sequence[tuple[float, float]], scale: float) -> list[tuple[float, float]]:
    """Return points on a line, close enough to each other that no label slips through, in pixels."""
    corners = [axes.transData.transform(corner) for corner in line]
    found = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) / (4 * scale)))
        found += [(x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps) for step in range(steps + 1)]
    return found


def _moved(label: Annotation, place: _Place, renderer: RendererBase) -> Bbox:
    """Move a label, and return what it covers there."""
    label.set_position(place.offset)
    label.set_horizontalalignment(_HORIZONTAL[place.direction[0]])
    label.set_verticalalignment(_VERTICAL[place.direction[1]])
    return label.get_window_extent(renderer)


def _cost(
    box: Bbox,
    place: _Place,
    covered: tuple[Sequence[Bbox], Sequence[Bbox]],
    others: Sequence[tuple[float, float]],
    bounds: Bbox,
) -> float:
    """Return how bad a place is: what is covered, how many other points the label seems to be of, how far it is.

    Of what is covered, the second are labels.
    """
    gap = 1.5 * _DISTANCES[0] * box.height / _FONT_SIZE
    mistaken = sum(box.x0 - gap < x < box.x1 + gap and box.y0 - gap / 4 < y < box.y1 + gap / 4 for x, y in others)
    leader = _LEADER if place.distance > _DISTANCES[0] else 0.0
    taken, written = (_covered(box, some, bounds) for some in covered)
    return taken + _UNREADABLE * written + _MISTAKEN * float(mistaken) + leader + place.distance


def _covered(box: Bbox, taken: Sequence[Bbox], bounds: Bbox) -> float:
    """Return how many square pixels of what is there a label would cover, and more where it leaves the axes."""
    if box.x0 < bounds.x0 or box.x1 > bounds.x1 or box.y0 < bounds.y0 or box.y1 > bounds.y1:
        return _OUTSIDE
    total = 0.0
    for other in taken:
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        if width > 0 and height > 0:
            total += width * height
    return total
