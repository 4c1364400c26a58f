"""Languages beside English: how much of what English reaches on the same pictures another language does."""

from __future__ import annotations

from collections.abc import Sequence

from mobileclip.evaluation.metrics.intervals import PairedDifference
from mobileclip.evaluation.report.table import Cell, Column, Table, per_cent, points
from mobileclip.evaluation.report.values import ModelResults

ENGLISH = "en"
_RECALL, _KS = "image_retrieval_recall@", (1, 5, 10)


def language_table(models: Sequence[ModelResults]) -> Table | None:
    """Return every model in every language against the first one in English, the ceiling; None without languages.

    A data set has languages where its results have parts, one of which is called `en`.

    Args:
        models: in the order of the run: the first that was measured in English is the ceiling.
    """
    rows = [
        row
        for task, ceiling in _ceilings(models).items()
        for model in models
        for key in model.results
        if key.startswith(f"{task}/") and (model is not ceiling or key != f"{task}/{ENGLISH}")
        for row in (_row(model, ceiling, key, f"{task}/{ENGLISH}"),)
    ]
    if not rows:
        return None
    columns = (
        Column(title="language", is_number=False),
        Column(title="model", is_number=False),
        Column(title="mean R@1, points to English", small="95 % interval, paired"),
        *(Column(title=f"R@{k}, % of English", small="% of % in English") for k in _KS),
    )
    return Table(title="Languages, with English as the ceiling", columns=columns, rows=tuple(rows))


def _ceilings(models: Sequence[ModelResults]) -> dict[str, ModelResults]:
    """Return the model that is the ceiling, by key of the data set."""
    found: dict[str, ModelResults] = {}
    for model in models:
        for key in model.results:
            task, _, language = key.rpartition("/")
            if language == ENGLISH and task in model.results:
                found.setdefault(task, model)
    return found


def _row(model: ModelResults, ceiling: ModelResults, key: str, english: str) -> tuple[Cell, ...]:
    own, best = model.results[key], ceiling.results[english]
    difference: PairedDifference | None = None
    if key in model.outcomes and english in ceiling.outcomes:
        difference = model.outcomes[key].compared_with(ceiling.outcomes[english])
    interval = None if difference is None else difference.interval
    between = "other pictures" if interval is None else f"{points(interval.low)} to {points(interval.high)}"
    recalls = [(own.metrics.get(f"{_RECALL}{k}"), best.metrics.get(f"{_RECALL}{k}")) for k in _KS]
    return (
        Cell(text=own.dataset),
        Cell(text=model.name),
        Cell(text=points(own.main_metric - best.main_metric), small=between),
        *(_share(value, most) for value, most in recalls),
    )


def _share(value: float | None, most: float | None) -> Cell:
    """Return how much of what English reaches is reached; nothing where nobody knows, or English reaches nothing."""
    if value is None or not most:
        return Cell()
    return Cell(text=per_cent(value / most, digits=0), small=f"{per_cent(value)} of {per_cent(most)}")
