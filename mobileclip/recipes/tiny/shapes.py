"""Outlines of additional shapes, which the drawn scenes do not use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Outline = Sequence[tuple[float, float]]


def _on_circle(count: int, radius: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [2 * math.pi * index / count + turn - math.pi / 2 for index in range(count)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star(count: int, inner: float) -> Outline:
    tips, notches = _on_circle(count), _on_circle(count, inner, math.pi / count)
    return [point for pair in zip(tips, notches, strict=True) for point in pair]


def _heart() -> Outline:
    times = np.linspace(0, 2 * math.pi, 40)
    x = np.sin(times) ** 3
    y = -(13 * np.cos(times) - 5 * np.cos(2 * times) - 2 * np.cos(3 * times) - np.cos(4 * times)) / 16
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _moon() -> Outline:
    outer = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0.3 * math.pi, 1.7 * math.pi, 30)]
    inner = [(0.35 + 0.84 * x, 0.95 * y) for x, y in reversed(outer)]
    return [*outer, *inner]


OUTLINES: dict[str, Outline] = {
    "star": _star(5, 0.42),
    "heart": _heart(),
    "arrow": [(-1, -0.25), (0.2, -0.25), (0.2, -0.75), (1, 0), (0.2, 0.75), (0.2, 0.25), (-1, 0.25)],
    "moon": _moon(),
    "hexagon": _on_circle(6),
    "house": [(-0.8, 1), (-0.8, -0.1), (0, -1), (0.8, -0.1), (0.8, 1)],
    "lightning": [(0.3, -1), (-0.7, 0.2), (-0.1, 0.2), (-0.3, 1), (0.7, -0.3), (0.1, -0.3)],
    "flower": _star(8, 0.62),
}
"""Outline of each shape, in units of the shape's size."""
