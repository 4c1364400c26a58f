"""Writes a report: one HTML page that needs no other file and runs no script, and plots as PNG files."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import storage
from mobileclip.evaluation.report.plots import DARK, LIGHT, Panel, draw_latency, latency_panels, to_png, to_svg
from mobileclip.evaluation.report.tables import (
    compared_pairs,
    coverage_table,
    differences_table,
    language_table,
    models_table,
    provenance_table,
    results_table,
    robustness_table,
)
from mobileclip.evaluation.report.values import ModelResults, require_models
from mobileclip.extras import VERSION, needed

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


def require_report() -> None:
    """Make sure that reports can be written.

    Raises:
        ModuleNotFoundError: if matplotlib or jinja2 is not there; the message says how to install it.
    """
    with needed("a report", "report"):
        import jinja2  # noqa: F401  whether it is there
        import matplotlib.figure  # noqa: F401  whether it is there


def write_report(
    path: storage.AnyPath,
    models: Sequence[ModelResults],
    *,
    title: str = "Evaluation of image-text models",
    when: datetime | None = None,
) -> None:
    """Write a page about models: one file with everything in it, for a desk, a phone and a printer.

    Args:
        path: the HTML file; replaced whole.
        models: measured here or published, in the order of the tables.
        title: above the page.
        when: when the report is made; now, where it is left out.

    Raises:
        ValueError: if there is no model, two have one name, or one is compared with a model that is not there.
        ModuleNotFoundError: if matplotlib or jinja2 is not there; the message says how to install it.
        OSError: if the file cannot be written.
    """
    require_models(models)
    require_report()
    made = datetime.now(timezone.utc) if when is None else when
    storage.write_text(path, _page(models, title=title, when=made))


def write_plots(folder: Path | str, models: Sequence[ModelResults]) -> tuple[Path, ...]:
    """Write the plots of a report as PNG files, and return their paths.

    Args:
        folder: made where it is missing; files of the same name are replaced.
        models: as in `write_report`.

    Raises:
        ValueError: as `write_report`.
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
        OSError: if a file cannot be written.
    """
    require_models(models)
    folder = Path(folder)
    paths = []
    for number, panel in enumerate(latency_panels(models), 1):
        folder.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9_]+", "-", panel.device.lower()).strip("-")[:80]
        paths.append(folder / f"latency-{number}-{panel.source}-{device}.png")
        with storage.atomic_write(paths[-1]) as stream:
            stream.write(to_png(draw_latency(panel, LIGHT)))
    return tuple(paths)


def _page(models: Sequence[ModelResults], *, title: str, when: datetime) -> str:
    measured = [model for model in models if model.source == "measured"]
    values: dict[str, Any] = {
        "title": title,
        "when": f"{when:%Y-%m-%d %H:%M %Z}",
        "version": VERSION,
        "num_measured": len(measured),
        "num_published": len(models) - len(measured),
        "differences": [differences_table(*pair) for pair in compared_pairs(models)],
        "plots": [_plot(panel) for panel in latency_panels(models)],
        "results": results_table(models),
        "languages": language_table(models),
        "models": models_table(models),
        "robustness": robustness_table(models),
        "origins": [provenance_table(measured), coverage_table(measured)] if measured else [],
    }
    return f"{_template('page.html').render(values)}\n"


def _template(name: str) -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: (files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # A caption cannot turn the direction in which the rest of the page is read.
        finalize=lambda value: storage.printable(value, limit=_MOST_LETTERS) if type(value) is str else value,
    )
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
