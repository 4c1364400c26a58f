"""Tables in a page: each scrolls within its own box where it is too wide."""

from __future__ import annotations

from collections.abc import Sequence

from mobileclip.evaluation.comparison import ComparisonRow
from mobileclip.evaluation.report.bars import arrow
from mobileclip.evaluation.report.markup import Markup, element, join
from mobileclip.evaluation.report.table import Cell, Column, Table, per_cent, points
from mobileclip.evaluation.report.tables import readable
from mobileclip.evaluation.report.values import ModelResults

_ARROWS = {"better": " \N{BLACK UP-POINTING TRIANGLE}", "worse": " \N{BLACK DOWN-POINTING TRIANGLE}"}


def table_html(table: Table) -> Markup:
    """Return a table with its notes, without its title."""
    numbers = [column.is_number for column in table.columns]
    head = element("tr", *map(_head, table.columns))
    rows = (_row(row, numbers) for row in table.rows)
    notes = (element("p", note, attributes={"class": "note"}) for note in table.notes)
    return join(
        _box(element("table", element("thead", head), element("tbody", *rows)), table.title),
        *notes,
    )


def bars_html(rows: Sequence[ComparisonRow], model: ModelResults, reference: ModelResults) -> Markup:
    """Return a bar for each data set, with a tick where the other model is, and the difference.

    Args:
        rows: from `differences`, at least one.
        model: whose bars they are.
        reference: whose ticks they are.
    """
    names = (model.name, reference.name, "difference")
    head = element(
        "tr",
        _head(Column(title="data set", is_number=False)),
        element("td", attributes={"class": "track-cell"}),
        *(_head(Column(title=name)) for name in names),
    )
    table = element("table", element("thead", head), element("tbody", *map(_bar_row, rows)))
    legend = element(
        "p",
        element("span", element("i", attributes={"class": "fill"}), f"{model.name}, {_origin(model)}"),
        element("span", element("i", attributes={"class": "tick"}), f"{reference.name}, {_origin(reference)}"),
        attributes={"class": "legend"},
    )
    return join(legend, _box(table, f"{model.name} beside {reference.name}", kind="scroll bars"))


def _bar_row(row: ComparisonRow) -> Markup:
    assert row.difference is not None, "rows have both sides"
    fill, place = (100 * min(1.0, max(0.0, score or 0.0)) for score in (row.measured, row.published))
    track = element(
        "span",
        element("span", attributes={"class": "fill", "style": f"width:{fill:.2f}%"}),
        element("span", attributes={"class": "tick", "style": f"left:{place:.2f}%"}),
        attributes={"class": "track", "aria-hidden": "true"},
    )
    mark = ("better" if row.difference > 0 else "worse") if row.stands_out else ""
    noise = f"noise {per_cent(row.noise)}" if row.noise < 1 else "noise unknown"
    difference = f"{points(row.difference)} {arrow(row)}".strip()
    return element(
        "tr",
        element("th", row.name, element("small", readable(row.metric)), attributes={"scope": "row"}),
        element("td", track, attributes={"class": "track-cell"}),
        element("td", per_cent(row.measured), attributes={"class": "number"}),
        element("td", per_cent(row.published), attributes={"class": "number"}),
        element("td", difference, element("small", noise), attributes={"class": f"number {mark}".strip()}),
    )


def _box(table: Markup, title: str, *, kind: str = "scroll") -> Markup:
    # What scrolls must be reachable by the keyboard.
    return element("div", table, attributes={"class": kind, "role": "region", "aria-label": title, "tabindex": "0"})


def _head(column: Column) -> Markup:
    attributes = {"scope": "col", "class": "number"} if column.is_number else {"scope": "col"}
    small = [element("small", column.small)] if column.small else []
    return element("th", *_breakable(column.title), *small, attributes=attributes)


def _breakable(name: str) -> list[str | Markup]:
    """Return a name that may go on in another line behind an underscore."""
    first, *others = name.split("_")
    parts: list[str | Markup] = [first]
    for part in others:
        parts += ["_", element("wbr"), part]
    return parts


def _row(row: Sequence[Cell], numbers: Sequence[bool]) -> Markup:
    first, *others = zip(row, numbers, strict=True)
    small = [element("small", first[0].small)] if first[0].small else []
    return element(
        "tr",
        element("th", *_breakable(first[0].text), *small, attributes={"scope": "row"}),
        *(_cell(cell, is_number=is_number) for cell, is_number in others),
    )


def _cell(cell: Cell, *, is_number: bool) -> Markup:
    classes = " ".join(name for name in ("number" if is_number else "", cell.mark) if name)
    return element("td", *_content(cell), attributes={"class": classes} if classes else None)


def _content(cell: Cell) -> list[str | Markup]:
    content: list[str | Markup] = [cell.text + _ARROWS.get(cell.mark, "")]
    return [*content, element("small", cell.small)] if cell.small else content


def _origin(model: ModelResults) -> str:
    return "measured here" if model.source == "measured" else "published"
