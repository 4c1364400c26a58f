"""The whole report as one page that needs no other file, and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip.evaluation.report.disagreements import Disagreement
from mobileclip.evaluation.report.figures import DARK, LIGHT, to_svg
from mobileclip.evaluation.report.languages import language_table
from mobileclip.evaluation.report.origins import coverage_table, provenance_table
from mobileclip.evaluation.report.plots import Panel, draw_latency, latency_panels
from mobileclip.evaluation.report.tables import models_table, results_table, robustness_table, verdict_table
from mobileclip.evaluation.report.values import ModelResults
from mobileclip.evaluation.report.verdicts import comparisons
from mobileclip.storage import printable

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_PIXELS_PER_INCH = 100
_MOST_LETTERS = 10_000


@attrs.frozen(kw_only=True)
class _Plot:
    """A plot for light pages and dark ones.

    Args:
        light: SVG, as a URL.
        dark: SVG, as a URL.
        width: in pixels.
        height: in pixels.
        alt: what it shows, in words.
    """

    light: Markup
    dark: Markup
    width: int
    height: int
    alt: str


def page(
    models: Sequence[ModelResults],
    disagreements: Sequence[Disagreement],
    *,
    title: str,
    when: datetime,
    version: str,
) -> str:
    """Return the page.

    Args:
        models: what it is about.
        disagreements: pictures that are answered differently, or wrong.
        title: above it.
        when: when the report is made.
        version: of this library.
    """
    measured = [model for model in models if model.source == "measured"]
    values = {
        "title": title,
        "when": f"{when:%Y-%m-%d %H:%M %Z}",
        "version": version,
        "num_measured": len(measured),
        "num_published": len(models) - len(measured),
        "comparisons": [(one, verdict_table(one)) for one in comparisons(models)],
        "disagreements": [one for one in disagreements if one.gained or one.lost or one.reference],
        "plots": [_plot(panel) for panel in latency_panels(models)],
        "results": results_table(models),
        "languages": language_table(models),
        "models": models_table(models),
        "robustness": robustness_table(models),
        "origins": [provenance_table(measured), coverage_table(measured)] if measured else [],
    }
    return rendered("page.html", values)


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a page of a template beside this file."""
    written: str = _template(template).render(values)
    return f"{written}\n"


def _template(name: str) -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: (files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # A caption cannot turn the direction in which the rest of the page is read.
        finalize=lambda value: printable(value, limit=_MOST_LETTERS) if type(value) is str else value,
    )
    environment.filters["address"] = _address
    return environment.get_template(name)


def _plot(panel: Panel) -> _Plot:
    light, dark = (draw_latency(panel, theme) for theme in (LIGHT, DARK))
    width, height = (round(_PIXELS_PER_INCH * side) for side in light.get_size_inches())
    ends = ("{:.1f} to {:.1f}".format(*one.ends) for one in panel.points)
    named = "; ".join(
        f"{one.name} {100 * one.score:.1f} ({end}) at {one.total_ms:.1f} ms"
        for one, end in zip(panel.points, ends, strict=True)
    )
    return _Plot(
        light=_address(to_svg(light), "image/svg+xml"),
        dark=_address(to_svg(dark), "image/svg+xml"),
        width=width,
        height=height,
        alt=f"Plot of the {panel.score_title}, in per cent, over the latency on {panel.device}: {named}",
    )


def _address(data: bytes, kind: str) -> Markup:
    """Return a URL that holds the file itself.

    Args:
        data: the file.
        kind: its media type.
    """
    from markupsafe import Markup

    return Markup("data:{};base64,{}").format(kind, base64.b64encode(data).decode())
