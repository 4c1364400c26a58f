"""The table of results, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmarks.harness.results import Results, Row, Value, text

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 300


def columns(rows: Sequence[Row]) -> tuple[list[str], list[str], list[str]]:
    """Return the column names of cases, values and notes, in the order of their first use."""
    names = [[name for row in rows for name in getattr(row, part)] for part in ("case", "values", "notes")]
    cases, values, notes = (list(dict.fromkeys(part)) for part in names)
    return cases, values, notes


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the table's head, with units, and its rows; the last cell marks failed rows."""
    cases, values, notes = columns(rows)
    units = {name: value.unit for row in rows for name, value in row.values.items()}
    has_failures = any(row.failure for row in rows)
    head = [
        *cases,
        *(f"{name}, {units[name]}" if units[name] not in ("", "cosine") else name for name in values),
        *notes,
        *([""] if has_failures else []),
    ]
    body = [
        [
            *(row.case.get(name, "") for name in cases),
            *(cell(row.values.get(name)) for name in values),
            *(row.notes.get(name, "") for name in notes),
            *(["failed" if row.failure else ""] if has_failures else []),
        ]
        for row in rows
    ]
    return head, body


def cell(value: Value | None) -> str:
    """Return a number with its interval, or an empty text without a value."""
    if value is None:
        return ""
    shown = text(value.number, value.unit)
    if value.low is None or value.high is None:
        return shown
    return f"{shown} ({text(value.low, value.unit)} to {text(value.high, value.unit)})"


def terminal_table(results: Results) -> Table:
    """Return the table for the terminal, with labels and notes left-aligned and numbers right-aligned."""
    from rich.table import Table

    title = f"{results.benchmark}: {results.machine}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    head, body = cells(results.rows)
    numbers = range(len(columns(results.rows)[0]), len(head) - len(columns(results.rows)[2]))
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place in numbers else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    return table


def failures(rows: Iterable[Row]) -> list[str]:
    """Return a line per failed row."""
    return [f"{', '.join(row.case.values())}: {row.failure[:_SHOWN]}" for row in rows if row.failure is not None]


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, followed by the failures."""
    head, body = cells(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
    failed = failures(rows)
    return "\n".join([*lines, *(["", "Without a result:", "", *(f"- {one}" for one in failed)] if failed else []), ""])
