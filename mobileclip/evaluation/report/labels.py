"""Labels beside points, where they hide neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_FONT_SIZE = 8.5
# In points; a label at the greater distances is joined to its point by a line.
_POINT_RADIUS = 5.0
_DISTANCES = (7.0, 18.0, 30.0)
# Right and left read best, then above and below, then between them.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_OUTSIDE = 1e6
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


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str]], *, color: str, line_color: str) -> None:
    """Write every point's label where it covers least of what is there already.

    Args:
        axes: of a figure whose size and layout are final.
        points: x, y and label of each, in data coordinates.
        color: of the labels.
        line_color: of the lines that join distant labels to their points.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None, "axes belong to a figure"
    scale = figure.dpi / 72
    radius = _POINT_RADIUS * scale
    pixels = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in pixels]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    highest_first = sorted(range(len(points)), key=lambda one: -float(pixels[one][1]))
    for point_x, point_y, text in (points[one] for one in highest_first):
        label = axes.annotate(
            text,
            (point_x, point_y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_FONT_SIZE,
            color=color,
            parse_math=False,
            zorder=4,
        )
        costs = {place: _cost(label, place, taken, axes.bbox) for place in _PLACES}
        best = min(costs, key=lambda place: costs[place])
        _move(label, best)
        taken.append(label.get_window_extent())
        if best.distance > _DISTANCES[0]:
            axes.annotate(
                "",
                (point_x, point_y),
                xytext=best.offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": line_color, "linewidth": 0.8, "shrinkB": _POINT_RADIUS},
                zorder=2,
            )


def _move(label: Annotation, place: _Place) -> None:
    label.set_position(place.offset)
    label.set_horizontalalignment(_HORIZONTAL[place.direction[0]])
    label.set_verticalalignment(_VERTICAL[place.direction[1]])


def _cost(label: Annotation, place: _Place, taken: Sequence[Bbox], bounds: Bbox) -> float:
    """Return how bad a place is: what is covered counts most, then the distance."""
    _move(label, place)
    return _covered(label.get_window_extent(), taken, bounds) + place.distance


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
