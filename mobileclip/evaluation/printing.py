"""An evaluation as a command runs it: data sets are found among the models, and results are printed as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mobileclip.evaluation.published import published_results
from mobileclip.evaluation.runner import evaluate_models
from mobileclip.evaluation.spec import EvaluationSpec
from mobileclip.evaluation.tasks.catalogue import is_data_set
from mobileclip.terminal import console, print_table, say
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from mobileclip.evaluation.report import ModelResults, Table
    from mobileclip.evaluation.report.tables import Cell
    from mobileclip.evaluation.runner import Run

# Characters that the names of rows have at least, where they are as long: the other columns fold first.
_NAME_WIDTH = 32


def evaluate_and_print(
    models: Sequence[str],
    spec: EvaluationSpec,
    *,
    beside: Sequence[str] = (),
    report: bool = False,
    strict: bool = False,
) -> None:
    """Evaluate models, and print differences and results.

    Args:
        models: as `evaluate_models` takes them.
        spec: the data sets, and how.
        beside: published models that stand in the table too.
        report: write a page and its plots as well.
        strict: whether it counts as a failure that samples of a data set were left out.

    Raises:
        SystemExit: with 1 if a model or a data set could not be evaluated, or samples were left out where that counts.
        ValueError: if a model or a data set cannot be used, or there is no published model of a name.
        ModuleNotFoundError: if a report needs what is not installed; the message says how to install it.
    """
    from mobileclip.evaluation.report.page import require_report
    from mobileclip.evaluation.summary import summarize, write_summary

    for name in beside:
        published_results(name)
    if report:
        require_report()
    run = evaluate_models(models, spec, for_report=report, console=console())
    if any(model.records for model in run.models):
        summary = summarize(run, beside=beside)
        _print_results(run, summary)
        if report:
            page, *plots = write_summary(spec.output, summary)
            say(f"report: {page}")
            for plot in plots:
                say(f"plot: {plot}")
    for failure in run.failures:
        what = f"{failure.model} on {failure.task}" if failure.task else failure.model
        say(f"not evaluated: {what}: {failure.message}", error=True)
    left_out = sum(record.result.num_skipped or 0 for model in run.models for record in model.records.values())
    conclude(left_out=left_out, strict=strict, done=not run.failures)


def divided(models: Sequence[str], spec: EvaluationSpec) -> tuple[tuple[str, ...], EvaluationSpec]:
    """Return what was typed as models without the data sets among them, and the spec with these.

    Args:
        models: models and data sets.
        spec: how they are evaluated.
    """
    data = tuple(one for one in models if is_data_set(one))
    others = tuple(one for one in models if one not in data)
    return others, attrs.evolve(spec, datasets=(*data, *spec.datasets))


def _print_results(run: Run, summary: Sequence[ModelResults]) -> None:
    """Print differences, one table of the data sets that were measured, and where the results are."""
    from mobileclip.evaluation.report import compared_pairs, differences_table, language_table, results_table

    for pair in compared_pairs(summary):
        _print_table(differences_table(*pair))
    _print_table(results_table(summary))
    if (languages := language_table(summary)) is not None:
        _print_table(languages)
    say("Main metrics in per cent, with 95 % intervals.")
    for model in run.models:
        say(f"{model.name}: {model.path}")


def _print_table(table: Table) -> None:
    """Print a table of a report."""
    from rich.table import Table as Printed

    printed = Printed(title=table.title, box=None)
    longest = max((len(row[0].text) for row in table.rows), default=0)
    for number, column in enumerate(table.columns):
        printed.add_column(
            "\n".join(filter(None, (column.title, column.small))),
            justify="right" if column.is_number else "left",
            overflow="fold",
            min_width=None if number else min(longest, _NAME_WIDTH),
        )
    for row in table.rows:
        printed.add_row(*(_printed(cell, is_first=number == 0) for number, cell in enumerate(row)))
    print_table(printed)


def _printed(cell: Cell, *, is_first: bool) -> str:
    """Return a cell in one line: an interval stands behind what it belongs to."""
    small = f" ({cell.small})" if cell.small and not is_first else ""
    return f"{cell.text}{small}"
