"""Collects the results of an evaluation run for its report."""

from __future__ import annotations

from collections.abc import Sequence, Set as AbstractSet
from datetime import datetime
from pathlib import Path

import attrs

from mobileclip.evaluation.report import (
    Coverage,
    ModelResults,
    Provenance,
    published_model,
    write_plots,
    write_report,
)
from mobileclip.evaluation.runner import ModelRun, Run


def summarize(run: Run, *, beside: Sequence[str] = ()) -> tuple[ModelResults, ...]:
    """Return the measured models, each with the published one that it can be compared with, and further published ones.

    Of published models, the results on the data sets that were measured stand beside.

    Args:
        run: what was measured.
        beside: names of further published models.

    Raises:
        ValueError: if no results of a model are published, or nothing was measured and none is asked for.
    """
    own = [model.published for model in run.models if model.published is not None]
    published = [published_model(name) for name in dict.fromkeys((*own, *beside))]
    measured = [_measured(model) for model in run.models]
    if not published and not measured:
        raise ValueError("there is nothing to show: no model could be opened")
    keys = {key for model in measured for key in model.results}
    if not keys:
        return (*measured, *published)
    return (*measured, *(_restricted(model, keys) for model in published))


def _restricted(model: ModelResults, keys: AbstractSet[str]) -> ModelResults:
    """Return a model with its results on some data sets alone."""
    return attrs.evolve(model, results={key: result for key, result in model.results.items() if key in keys})


def write_summary(folder: Path, models: Sequence[ModelResults]) -> tuple[Path, ...]:
    """Write `report.html` and, in `plots`, its plots as PNG files; return the paths.

    Args:
        folder: made where it is missing.
        models: from `summarize`.

    Raises:
        ValueError, ModuleNotFoundError, OSError: see `write_report`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    write_report(page, models)
    return (page, *write_plots(folder / "plots", models))


def _name(model: ModelRun) -> str:
    return f"{model.name} (measured)" if model.name == model.published else model.name


def _measured(model: ModelRun) -> ModelResults:
    return ModelResults(
        name=_name(model),
        results={key: record.result for key, record in model.records.items()},
        source="measured",
        reference=model.published,
        latencies=() if model.latency is None else (model.latency,),
        num_parameters=model.num_parameters,
        coverage={
            key: Coverage(num_used=record.result.num_images, left_out=record.left_out)
            for key, record in model.records.items()
            if record.result.num_images is not None
        },
        provenance=_provenance(model),
        outcomes=model.outcomes,
    )


def _provenance(model: ModelRun) -> Provenance | None:
    evaluated = [record.evaluated for record in model.records.values()]
    if not evaluated:
        return None
    last = max(evaluated, key=lambda one: one["when"])
    return Provenance(
        when=datetime.fromisoformat(last["when"]),
        version=last["version"],
        weights_sha256=model.weights_sha256,
        device=last.get("device", ""),
    )
