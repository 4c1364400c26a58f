"""Scores over steps, as a picture."""

from __future__ import annotations

from examples.icons.splits import TEST_PICTURES
from examples.learning_efficiency.curves import Curve
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.tables import Results, ladder_curves, percent
from examples.learning_efficiency.variants import LADDER
from mobileclip.charts import Line, Panel

# One for each rung of the ladder: a grey, and four of the palette of Okabe and Ito, which everybody can tell apart.
_COLOURS = dict(zip(LADDER, ("#777777", "#e69f00", "#0072b2", "#009e73", "#d55e00"), strict=True))


def panels(spec: EfficiencySpec, results: Results) -> list[Panel]:
    """Return the ladder's top-5 on unseen drawings over the steps, a panel for each share of the pictures.

    A line is the mean over seeds, its band one standard deviation. A hollow point is a single training.

    Args:
        spec: the choices.
        results: the trainings that are finished.
    """
    return [
        Panel(
            lines=[_line(curve, name) for name, curve in ladder_curves(results, share, TEST_PICTURES, "top5").items()],
            title=f"{percent(share)} of the pictures",
            x_label="training steps",
            y_label="top-5 on unseen drawings, %",
            has_legend=True,
            is_log=True,
            from_zero=True,
        )
        for share in spec.shares
    ]


def _line(curve: Curve, name: str) -> Line:
    return Line(
        x=curve.steps.tolist(),
        y=curve.mean.tolist(),
        label=LADDER[name].title,
        marker=".",
        color=_COLOURS[name],
        spread=curve.deviation.tolist(),
    )
