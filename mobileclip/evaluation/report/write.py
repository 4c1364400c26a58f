"""Reports as files: one page, and pictures for where a page cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from mobileclip import storage
from mobileclip.evaluation.report.bars import draw_bars
from mobileclip.evaluation.report.details import DatasetDetails
from mobileclip.evaluation.report.differences import differences
from mobileclip.evaluation.report.figures import LIGHT, to_png
from mobileclip.evaluation.report.latency import draw_latency, latency_panels
from mobileclip.evaluation.report.page import page
from mobileclip.evaluation.report.sheets import draw_confusion, draw_retrieval
from mobileclip.evaluation.report.table_picture import draw_table
from mobileclip.evaluation.report.tables import models_table, results_table, robustness_table
from mobileclip.evaluation.report.values import ModelResults, reference_of, require_models
from mobileclip.extras import VERSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    path: storage.AnyPath,
    models: Sequence[ModelResults],
    details: Sequence[DatasetDetails] = (),
    *,
    title: str = "Evaluation of image-text models",
    when: datetime | None = None,
) -> None:
    """Write a page about models: one file with everything in it, for a desk, a phone and a printer.

    Args:
        path: the HTML file; replaced whole.
        models: measured here or published, in the order of the tables.
        details: from `dataset_details`, of models among them.
        title: above the page.
        when: when the report is made; now, where it is left out.

    Raises:
        ValueError: if there is no model, two have one name, one is compared with a model that is not there, or details
            are of a model that is not there.
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
        OSError: if the file cannot be written.
    """
    _require(models, details)
    made = datetime.now(timezone.utc) if when is None else when
    written = page(models, details, title=title, when=made, version=VERSION)
    with storage.atomic_write(path) as stream:
        stream.write(written.encode())


def write_pictures(
    folder: Path | str, models: Sequence[ModelResults], details: Sequence[DatasetDetails] = ()
) -> tuple[Path, ...]:
    """Write the tables, plots and sheets of a report as PNG files, and return their paths.

    Args:
        folder: made where it is missing; files of the same name are replaced.
        models: as in `write_report`.
        details: as in `write_report`.

    Raises:
        ValueError: as `write_report`.
        ModuleNotFoundError: if matplotlib is not there; the message says how to install it.
        OSError: if a file cannot be written.
    """
    _require(models, details)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in _pictures(models, details):
        paths.append(folder / f"{_file_name(name)}.png")
        if paths[-1] in paths[:-1]:
            # Two names may differ only in what a file name cannot hold.
            paths[-1] = folder / f"{_file_name(name)}-{len(paths)}.png"
        with storage.atomic_write(paths[-1]) as stream:
            stream.write(to_png(figure))
    return tuple(paths)


def _pictures(models: Sequence[ModelResults], details: Sequence[DatasetDetails]) -> Iterator[tuple[str, Figure]]:
    for panel in latency_panels(models):
        yield f"latency-{panel.source}-{panel.device}", draw_latency(panel, LIGHT)
    for name, table in (
        ("models", models_table(models)),
        ("robustness", robustness_table(models)),
        ("results", results_table(models)),
    ):
        if table is not None:
            yield name, draw_table(table, LIGHT)
    for model in models:
        reference = reference_of(model, models)
        rows = differences(model, reference) if reference is not None else ()
        if reference is not None and rows:
            yield f"bars-{model.name}", draw_bars(rows, model, reference, LIGHT)
    for one in details:
        if one.confused:
            yield f"confusion-{one.model}-{one.dataset}", draw_confusion(one, LIGHT)
        if one.text_queries or one.image_queries:
            yield f"retrieval-{one.model}-{one.dataset}", draw_retrieval(one, LIGHT)


def _require(models: Sequence[ModelResults], details: Sequence[DatasetDetails]) -> None:
    require_models(models)
    names = [model.name for model in models]
    for one in details:
        if one.model not in names:
            raise ValueError(
                f"there are details of {one.model!r} on {one.dataset}, but the report is about "
                f"{', '.join(map(repr, names))}"
            )


def _file_name(name: str) -> str:
    """Return what every file system can hold."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:100]
