"""Scores over steps, as a picture."""

from __future__ import annotations

from examples.icons.splits import TEST_PICTURES
from mobileclip.charts import Line, Panel
from studies.learning_efficiency.curves import Curve, half_widths
from studies.learning_efficiency.spec import EfficiencySpec
from studies.learning_efficiency.tables import Results, percent, variant_curves
from studies.learning_efficiency.variants import CAPTIONS, LADDER

# The ladder, its losing rungs too, and plain training on names: what synthetic captions are to be compared with.
DRAWN = {**{name: one.title for name, one in LADDER.items()}, "names": CAPTIONS["names"].title}
# A grey, and five of the palette of Okabe and Ito, which everybody can tell apart.
_COLOURS = dict(zip(DRAWN, ("#777777", "#e69f00", "#0072b2", "#009e73", "#d55e00", "#cc79a7"), strict=True))


def panels(spec: EfficiencySpec, results: Results) -> list[Panel]:
    """Return top-5 on unseen drawings over the steps, a panel for each share of the pictures.

    A line is the mean over seeds, its band the central 90 % when seeds and pictures are drawn anew.

    Args:
        spec: the choices.
        results: the trainings that are finished.
    """
    return [
        Panel(
            lines=[
                _line(curve, name)
                for name, curve in variant_curves(results, tuple(DRAWN), share, TEST_PICTURES, "top5").items()
            ],
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
        label=DRAWN[name],
        marker=".",
        color=_COLOURS[name],
        spread=half_widths(curve).tolist(),
    )
