"""Writes a report: one HTML page, and plots as PNG files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from mobileclip import storage
from mobileclip.evaluation.report.disagreements import Disagreement
from mobileclip.evaluation.report.figures import LIGHT, to_png
from mobileclip.evaluation.report.page import page
from mobileclip.evaluation.report.plots import draw_latency, latency_panels
from mobileclip.evaluation.report.values import ModelResults, require_models
from mobileclip.extras import VERSION, needed


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
    disagreements: Sequence[Disagreement] = (),
    *,
    title: str = "Evaluation of image-text models",
    when: datetime | None = None,
) -> None:
    """Write a page about models: one file with everything in it, for a desk, a phone and a printer.

    Args:
        path: the HTML file; replaced whole.
        models: measured here or published, in the order of the tables.
        disagreements: from `find_disagreements`, of models among them.
        title: above the page.
        when: when the report is made; now, where it is left out.

    Raises:
        ValueError: if there is no model, two have one name, one is compared with a model that is not there, or
            disagreements are of a model that is not there.
        ModuleNotFoundError: if matplotlib or jinja2 is not there; the message says how to install it.
        OSError: if the file cannot be written.
    """
    require_models(models)
    require_report()
    names = {model.name for model in models}
    for one in disagreements:
        if unknown := {one.model, one.reference or one.model} - names:
            raise ValueError(
                f"there are pictures of {min(unknown)!r} on {one.dataset}, but the report is about "
                f"{', '.join(map(repr, sorted(names)))}"
            )
    made = datetime.now(timezone.utc) if when is None else when
    storage.write_text(path, page(models, disagreements, title=title, when=made, version=VERSION))


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
