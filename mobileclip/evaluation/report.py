"""Writes a report: one self-contained HTML page without scripts, and plots as PNG files."""

from __future__ import annotations

import base64
import re
import tempfile
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import charts, storage
from mobileclip.evaluation.intervals import Interval, mean_interval
from mobileclip.evaluation.results import Latency, ModelResults, Source
from mobileclip.evaluation.suite import SUITE
from mobileclip.evaluation.tables import (
    compared_pairs,
    coverage_table,
    differences_table,
    language_table,
    models_table,
    prediction_tables,
    provenance_table,
    results_table,
    robustness_table,
)
from mobileclip.extras import VERSION, needed
from mobileclip.strict import repeated

if TYPE_CHECKING:
    from jinja2 import Template

_MOST_LETTERS = 10_000
_MOST_IN_A_PLOT = 24  # characters of a model's name


def require_report() -> None:
    """Raise an error if a package for reports is missing.

    Raises:
        ModuleNotFoundError: if matplotlib or jinja2 is not installed; the message explains how to install the package.
    """
    with needed("a report", "report"):
        import jinja2  # noqa: F401  checks that it is installed
        import matplotlib.figure  # noqa: F401  checks that it is installed


def write_report(
    path: storage.AnyPath,
    models: Sequence[ModelResults],
    *,
    title: str = "Evaluation of image-text models",
    when: datetime | None = None,
) -> None:
    """Write the results of models to a self-contained HTML page, laid out for desktop, phone and print.

    Args:
        path: path of the HTML file; an existing file is replaced.
        models: measured or published results, in the order of the tables.
        title: title of the page.
        when: time of the report; by default the current time.

    Raises:
        ValueError: if there are no models, two models have the same name, or the reference of a model is not
            another model in `models`.
        ModuleNotFoundError: if matplotlib or jinja2 is not installed; the message explains how to install the package.
        OSError: if the file cannot be written.
    """
    _require_models(models)
    require_report()
    storage.write_text(path, _page(models, title=title, when=when or datetime.now(timezone.utc)))


def write_plots(folder: Path | str, models: Sequence[ModelResults]) -> tuple[Path, ...]:
    """Write the plots of a report as PNG files, and return their paths.

    Args:
        folder: folder of the plots, created if missing; existing files with the names of the plots are replaced.
        models: measured or published results, see `write_report`.

    Raises:
        ValueError: if the models do not fit into one report, see `write_report`.
        ModuleNotFoundError: if matplotlib is not installed; the message explains how to install the package.
        OSError: if a file cannot be written.
    """
    _require_models(models)
    paths = []
    for number, panel in enumerate(latency_panels(models), 1):
        device = re.sub(r"[^a-z0-9_]+", "-", panel.device.lower()).strip("-")[:80]
        paths.append(Path(folder) / f"latency-{number}-{panel.source}-{device}.png")
        draw_latency(panel, paths[-1])
    return tuple(paths)


def _require_models(models: Sequence[ModelResults]) -> None:
    """Raise an error if there are no models, a name occurs twice, or a reference model is not in the report."""
    names = [model.name for model in models]
    if not names:
        raise ValueError("there are no models; a report needs at least one")
    if twice := repeated(names):
        raise ValueError(f"models of a report need different names; repeated: {', '.join(map(repr, twice))}")
    for model in models:
        if model.reference is not None and (model.reference not in names or model.reference == model.name):
            others = ", ".join(repr(name) for name in names if name != model.name)
            raise ValueError(
                f"{model.name!r} has the reference {model.reference!r}, but a reference must be a "
                f"different model in the report; expected one of {others}"
            )


def _page(models: Sequence[ModelResults], *, title: str, when: datetime) -> str:
    measured = [model for model in models if model.source == "measured"]
    values: dict[str, Any] = {
        "title": title,
        "when": f"{when:%Y-%m-%d %H:%M %Z}",
        "version": VERSION,
        "num_measured": len(measured),
        "num_published": len(models) - len(measured),
        "results": results_table(models),
        "predictions": prediction_tables(measured),
        "differences": [differences_table(*pair) for pair in compared_pairs(models)],
        "languages": language_table(models),
        "models": models_table(models),
        "plots": [_plot(panel) for panel in latency_panels(models)],
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
        # Removes control characters, which could change the text direction of the rest of the page.
        finalize=lambda value: storage.printable(value, limit=_MOST_LETTERS) if type(value) is str else value,
    )
    return environment.get_template(name)


@attrs.frozen(kw_only=True)
class Point:
    """One model in a `Panel`.

    Args:
        name: name of the model.
        source: source of the model's accuracy.
        total_ms: total latency of one image and one text, in milliseconds.
        score: mean of the model's main metrics, as a fraction from 0 to 1.
        interval: 95 % confidence interval of the score; None if the number of images is unknown.
    """

    name: str
    source: Source
    total_ms: float
    score: float
    interval: Interval | None

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval in per cent; without an interval, both ends are the score."""
        found = self.interval or Interval(self.score, self.score)
        return 100 * found.low, 100 * found.high


@attrs.frozen(kw_only=True)
class Panel:
    """A plot of accuracy against latency for at least two models on one device.

    Args:
        device: name of the device.
        source: whether the latencies are measured here or published.
        score_title: label of the scores, such as `average of 38 data sets`.
        points: one point for each model.
    """

    device: str
    source: Source
    score_title: str
    points: tuple[Point, ...]


def latency_panels(models: Sequence[ModelResults]) -> tuple[Panel, ...]:
    """Return a panel for each device and latency source; scores are means over the panel's common data sets.

    A device has no panel if only one model has latencies on the device, or if the models with latencies share no
    data set.

    Args:
        models: results of models; models without latencies appear in no panel.
    """
    devices: dict[tuple[str, Source], list[tuple[ModelResults, Latency]]] = {}
    for model in models:
        for one in model.latencies:
            devices.setdefault((one.device, one.source), []).append((model, one))
    suite = [entry.key for entry in SUITE]
    panels = []
    for (device, source), timed in devices.items():
        common = set.intersection(*(set(model.results) for model, _ in timed))
        if len(timed) < 2 or not common:
            continue
        # Published results outside the suite are ignored, so that the mean equals the papers' mean.
        keys = suite if common.issuperset(suite) else sorted(common)
        title = f"average of {len(suite)} data sets" if keys is suite else f"mean of {len(keys)} data sets"
        if len(keys) == 1:
            title = timed[0][0].results[keys[0]].dataset
        points = tuple(_point(model, latency, keys) for model, latency in timed)
        panels.append(Panel(device=device, source=source, score_title=title, points=points))
    return tuple(panels)


def _point(model: ModelResults, latency: Latency, keys: Sequence[str]) -> Point:
    scores = [model.results[key].main_metric for key in keys]
    intervals = [one for one in (model.results[key].interval for key in keys) if one is not None]
    return Point(
        name=model.name,
        source=model.source,
        total_ms=latency.total_ms,
        score=fmean(scores),
        interval=mean_interval(scores, intervals) if len(intervals) == len(keys) else None,
    )


def draw_latency(panel: Panel, path: Path) -> None:
    """Write a PNG plot of accuracy against latency on one device, with 95 % intervals."""
    lines = [
        charts.Line(
            x=[one.total_ms for one in chosen],
            y=[100 * one.score for one in chosen],
            bars=[one.ends for one in chosen],
            names=[_short(one.name) for one in chosen],
            label=label,
            is_joined=False,
        )
        for source, label in (("published", "published accuracy"), ("measured", "measured here"))
        if (chosen := [one for one in panel.points if one.source == source])
    ]
    best = max(panel.points, key=lambda one: one.score)
    title = f"{_short(best.name)} is best: {100 * best.score:.1f} % in {best.total_ms:.3g} ms"
    chart = charts.Panel(
        lines=lines, x_label="latency of image + text, ms", y_label=f"{panel.score_title}, %", title=title, is_log=True
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib draws a box for glyphs that the font lacks
        charts.write_chart([chart], path)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_IN_A_PLOT else f"{name[: _MOST_IN_A_PLOT - 1]}\N{HORIZONTAL ELLIPSIS}"


def _plot(panel: Panel) -> dict[str, str]:
    """Return a plot as a data URL, with a caption and a text description."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plot.png")
        draw_latency(panel, path)
        data = base64.b64encode(path.read_bytes()).decode()
    named = "; ".join(
        f"{one.name} {100 * one.score:.1f} ({one.ends[0]:.1f} to {one.ends[1]:.1f}) at {one.total_ms:.1f} ms"
        for one in panel.points
    )
    return {
        "src": f"data:image/png;base64,{data}",
        "caption": f"{panel.score_title}, per cent, against latency on {panel.device}",
        "alt": f"Plot of the {panel.score_title}, in per cent, against latency on {panel.device}: {named}",
    }
