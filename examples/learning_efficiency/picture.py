"""Scores over steps, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from examples.icons.splits import TEST_PICTURES
from examples.learning_efficiency.curves import Curve
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.tables import Results, ladder_curves, percent
from examples.learning_efficiency.variants import LADDER
from mobileclip.evaluation.report.figures import LIGHT, new_figure, rule_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One for each rung of the ladder: a grey, and four of the palette of Okabe and Ito, which everybody can tell apart.
_COLOURS = dict(zip(LADDER, (LIGHT.faint, "#e69f00", "#0072b2", "#009e73", "#d55e00"), strict=True))


def draw(spec: EfficiencySpec, results: Results) -> Figure:
    """Return the ladder's top-5 on unseen drawings over the steps, a panel for each share of the pictures.

    A line is the mean over seeds, its band one standard deviation. A hollow point is a single training.

    Args:
        spec: the choices.
        results: the trainings that are finished.
    """
    figure = new_figure(3.4 * len(spec.shares), 3.3, LIGHT)
    panels = figure.subplots(1, len(spec.shares), squeeze=False)[0]
    for axes, share in zip(panels, spec.shares, strict=True):
        curves = ladder_curves(results, share, TEST_PICTURES, "top5")
        for name, curve in curves.items():
            _add_line(axes, curve, name)
        axes.set_xscale("log")
        rule_axes(axes, sorted({float(steps) for curve in curves.values() for steps in curve.steps}), LIGHT)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{percent(share)} of the pictures", loc="left", color=LIGHT.ink, fontsize=10)
        axes.set_xlabel("training steps", color=LIGHT.faint, fontsize=9)
    panels[0].set_ylabel("top-5 on unseen drawings, %", color=LIGHT.faint, fontsize=9)
    # A rung that is trained with some shares alone is named as well.
    lines = {line.get_label(): line for axes in panels for line in axes.lines}
    named = [lines[variant.title] for variant in reversed(LADDER.values()) if variant.title in lines]
    panels[-1].legend(handles=named, loc="upper left", fontsize=8.5, frameon=False, labelcolor=LIGHT.ink)
    figure.tight_layout()
    return figure


def _add_line(axes: Axes, curve: Curve, name: str) -> None:
    colour = _COLOURS[name]
    axes.plot(curve.steps, curve.mean, "o-", color=colour, markersize=3.5, linewidth=1.4, label=LADDER[name].title)
    low, high = curve.mean - curve.deviation, curve.mean + curve.deviation
    axes.fill_between(curve.steps, low, high, color=colour, alpha=0.16, linewidth=0)
    single = np.isnan(curve.deviation)
    axes.scatter(curve.steps[single], curve.mean[single], s=14, facecolors=LIGHT.paper, edgecolors=colour, zorder=3)
