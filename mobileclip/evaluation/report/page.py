"""The whole report as one page that needs no other file, and runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.resources import files

from mobileclip.evaluation.report.details import DatasetDetails
from mobileclip.evaluation.report.details_html import details_html
from mobileclip.evaluation.report.differences import differences
from mobileclip.evaluation.report.figures import DARK, LIGHT, to_svg
from mobileclip.evaluation.report.inline import plot
from mobileclip.evaluation.report.latency import Panel, draw_latency, latency_panels
from mobileclip.evaluation.report.markup import Markup, element, join
from mobileclip.evaluation.report.origins import coverage_table, provenance_table
from mobileclip.evaluation.report.tables import models_table, paired_table, results_table, robustness_table
from mobileclip.evaluation.report.tables_html import bars_html, table_html
from mobileclip.evaluation.report.values import ModelResults, reference_of

# Whatever is in a caption, the browser loads nothing and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PIXELS_PER_INCH = 100

_NOISE = (
    "An arrow marks what differs by more than the noise: two standard errors of the difference of two accuracies on as "
    "many images as were used. Metrics over the worst of several groups, and macro F1, are noisier than that."
)
_LATENCY = (
    "Each panel is one device: latencies on a phone and latencies measured here say nothing about each other. The "
    "accuracies of a panel are over the data sets that all its models have a result on."
)
_SOURCES = (
    "Published results and latencies are those of the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 "
    "(arXiv 2508.20691). Everything else was measured here."
)


def page(
    models: Sequence[ModelResults], details: Sequence[DatasetDetails], *, title: str, when: datetime, version: str
) -> str:
    """Return the page.

    Args:
        models: what it is about.
        details: what is known beyond the metrics.
        title: above it.
        when: when the report is made.
        version: of this library.
    """
    sections = list(_sections(models, details))
    links = [
        element("li", element("a", heading, attributes={"href": f"#part-{number}"}))
        for number, (heading, _) in enumerate(sections, 1)
    ]
    measured = sum(model.source == "measured" for model in models)
    header = element(
        "header",
        element("h1", title),
        element(
            "p",
            f"{when:%Y-%m-%d %H:%M %Z}, mobileclip {version}. Results of ",
            element("span", f"{measured} measured here", attributes={"class": "tag measured"}),
            " ",
            element("span", f"{len(models) - measured} published", attributes={"class": "tag published"}),
            " models.",
            attributes={"class": "faint"},
        ),
        element("nav", element("ul", *links), attributes={"aria-label": "Parts of the report"}),
    )
    parts = [
        element("section", element("h2", heading), body, attributes={"id": f"part-{number}"})
        for number, (heading, body) in enumerate(sections, 1)
    ]
    body = element("body", header, element("main", *parts), element("footer", element("p", _SOURCES)))
    return f"<!doctype html>\n{element('html', _head(title), body, attributes={'lang': 'en'}).html}\n"


def _head(title: str) -> Markup:
    style = (files(__package__) / "style.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", attributes={"charset": "utf-8"}),
        element("meta", attributes={"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("title", title),
        element("style", Markup(style)),
    )


def _sections(models: Sequence[ModelResults], details: Sequence[DatasetDetails]) -> Iterator[tuple[str, Markup]]:
    yield "Models", table_html(models_table(models))
    panels = latency_panels(models)
    if panels:
        plots = element("div", *map(_panel, panels), attributes={"class": "plots"})
        yield "Accuracy over latency", join(plots, _note(_LATENCY))
    compared = list(_comparisons(models))
    if compared:
        yield "Comparisons", join(_note(_NOISE), *compared)
    pairs = paired_table(models)
    if pairs is not None:
        yield pairs.title, table_html(pairs)
    robustness = robustness_table(models)
    if robustness is not None:
        yield "Robustness", table_html(robustness)
    yield "All results", table_html(results_table(models))
    if details:
        yield "Up close", join(*map(details_html, details))
    measured = [model for model in models if model.source == "measured"]
    if measured:
        provenance, coverage = provenance_table(measured), coverage_table(measured)
        yield "How it was measured", join(table_html(provenance), element("h3", coverage.title), table_html(coverage))


def _comparisons(models: Sequence[ModelResults]) -> Iterator[Markup]:
    for model in models:
        reference = reference_of(model, models)
        rows = differences(model, reference) if reference is not None else ()
        if reference is None or not rows:
            continue
        num_out = sum(row.stands_out for row in rows)
        yield element("h3", f"{model.name} beside {reference.name}")
        yield element("p", f"{num_out} of {len(rows)} differ by more than the noise.")
        yield bars_html(rows, model, reference)


def _panel(panel: Panel) -> Markup:
    light, dark = (draw_latency(panel, theme) for theme in (LIGHT, DARK))
    width, height = (round(_PIXELS_PER_INCH * side) for side in light.get_size_inches())
    named = "; ".join(f"{one.name} {100 * one.score:.1f} at {one.total_ms:.1f} ms" for one in panel.points)
    alt = f"Plot of the {panel.score_title}, in per cent, over the latency on {panel.device}: {named}"
    return plot(to_svg(light), to_svg(dark), width=width, height=height, alt=alt)


def _note(text: str) -> Markup:
    return element("p", text, attributes={"class": "note"})
