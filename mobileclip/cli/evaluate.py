"""`mobileclip eval ...`: how good models are."""

# ruff: noqa: T201  what a command prints is what it is for

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

if TYPE_CHECKING:
    from mobileclip.evaluation import ComparisonRow, DatasetResult

app = SubcommandApp()


@app.command
def report(
    results: Annotated[Positional[Path | None], arg(metavar="RESULTS.jsonl")] = None,
    /,
    *,
    model: Annotated[str, arg(aliases=["-m"], metavar="NAME")] = "mobileclip_s2",
) -> None:
    """Print a model's results on the 38 data sets beside the published ones.

    mobileclip eval report results.jsonl --model mobileclip_s0

    RESULTS.jsonl has a line for each data set: {"key": "vtab/pets", "dataset": "Oxford-IIIT Pet", "metrics":
    {"main_metric": 0.9}}. Without it, the published results are printed alone.

    A star marks what differs by more than the noise: two standard errors of the difference of two accuracies on as many
    images. Metrics over the worst of several groups, and macro F1, are noisier than that.

    Args:
        results: what was measured here.
        model: whose published results stand beside.
    """
    from rich.console import Console
    from rich.table import Table

    from mobileclip.evaluation import compare_results, published_results, read_results

    published = published_results(model)
    measured = {} if results is None else read_results(results)
    table = Table(title=f"{model}, in per cent", box=None)
    table.add_column("data set", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for title in ("measured here", "published", "difference", "noise"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = compare_results(measured, published)
    for row in rows:
        table.add_row(row.name, row.metric, *_cells(row))
    table.add_section()
    table.add_row("average", "", _average(measured), _average(published), "", "")
    # Wider than most: a table that is cut says nothing.
    Console(width=max(100, Console().width)).print(table)
    num_stars = sum(row.stands_out for row in rows)
    both = sum(row.difference is not None for row in rows)
    if both:
        print(f"{num_stars} of {both} differ by more than the noise (*).")


def _cells(row: ComparisonRow) -> tuple[str, str, str, str]:
    difference = "" if row.difference is None else f"{100 * row.difference:+.2f}{'*' if row.stands_out else ' '}"
    noise = "" if row.difference is None else f"{100 * row.noise:.2f}"
    return _per_cent(row.measured), _per_cent(row.published), difference, noise


def _average(results: dict[str, DatasetResult]) -> str:
    from mobileclip.evaluation import SUITE, suite_average

    there = sum(entry.key in results for entry in SUITE)
    return _per_cent(suite_average(results)) if there == len(SUITE) else f"{there} of {len(SUITE)}"


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
