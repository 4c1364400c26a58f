"""Where measured results come from: when, with what, and how much of each data set."""

from __future__ import annotations

from collections.abc import Sequence

from mobileclip.evaluation.report.table import Cell, Column, Table
from mobileclip.evaluation.report.values import Coverage, ModelResults
from mobileclip.evaluation.results import DatasetResult

_UNKNOWN = "not recorded"


def provenance_table(models: Sequence[ModelResults]) -> Table:
    """Return when and with what each model was measured.

    Args:
        models: those that were measured here.
    """
    titles = ("model", "when", "version", "device", "SHA-256 of the weights")
    return Table(
        title="When and with what",
        columns=tuple(Column(title=title, is_number=False) for title in titles),
        rows=tuple((Cell(text=model.name), *_provenance(model)) for model in models),
    )


def coverage_table(models: Sequence[ModelResults]) -> Table:
    """Return how many images of each data set were used and left out, with the reasons.

    Args:
        models: those that were measured here.
    """
    titles = (("data set", False), ("model", False), ("images used", True), ("left out", True), ("reasons", False))
    return Table(
        title="Images used and left out",
        columns=tuple(Column(title=title, is_number=is_number) for title, is_number in titles),
        rows=tuple(
            (Cell(text=result.dataset), Cell(text=model.name), *_coverage(model.coverage.get(key), result))
            for model in models
            for key, result in model.results.items()
        ),
        notes=("What is left out counts in no metric. A shard that breaks off counts once, however much it held.",),
    )


def _provenance(model: ModelResults) -> tuple[Cell, ...]:
    origin = model.provenance
    if origin is None:
        return (Cell(text=_UNKNOWN), Cell(), Cell(), Cell())
    return (
        Cell(text=f"{origin.when:%Y-%m-%d %H:%M %Z}".strip()),
        Cell(text=origin.version),
        Cell(text=origin.device or _UNKNOWN),
        Cell(text=origin.weights_sha256 or _UNKNOWN),
    )


def _coverage(coverage: Coverage | None, result: DatasetResult) -> tuple[Cell, ...]:
    if coverage is None:
        # The result alone may know the numbers, but not the reasons.
        used, left_out = (_count(number) for number in (result.num_images, result.num_skipped))
        return (Cell(text=used), Cell(text=left_out), Cell(text=_UNKNOWN if result.num_skipped != 0 else ""))
    reasons = ", ".join(f"{count:,} {_words(reason)}" for reason, count in coverage.left_out.items())
    return (Cell(text=_count(coverage.num_used)), Cell(text=_count(coverage.num_left_out)), Cell(text=reasons))


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _words(reason: str) -> str:
    """Return a reason as people say it; those of images that cannot be decoded start alike."""
    return reason.removeprefix("image_").replace("_", " ")
