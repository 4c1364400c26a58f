"""A table as a picture, for where a page cannot be."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobileclip.evaluation.report.figures import Theme, drawable, shortened
from mobileclip.evaluation.report.sheet import Sheet, line_height
from mobileclip.evaluation.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches; a character is as wide as most are in the font of pictures.
_MARGIN, _GAP, _PADDING = 0.3, 0.26, 0.055
_SIZE, _SMALL_SIZE = 9.0, 7.5
_CHARACTER, _SMALL_CHARACTER = 0.083, 0.067
_LONGEST, _LONGEST_SMALL, _LONGEST_TITLE, _LEAST_NOTE = 36, 48, 16, 60
_ARROWS = {"better": " \N{BLACK UP-POINTING TRIANGLE}", "worse": " \N{BLACK DOWN-POINTING TRIANGLE}"}


def draw_table(table: Table, theme: Theme) -> Figure:
    """Return a picture of a table; what is marked is bold, and has an arrow where it is a difference.

    Args:
        table: what to draw.
        theme: the colours.
    """
    titles = [_title_lines(column) for column in table.columns]
    widths = [_width(lines, [row[number] for row in table.rows]) for number, lines in enumerate(titles)]
    inner = sum(widths) + _GAP * (len(widths) - 1)
    note_length = max(_LEAST_NOTE, round(inner / _SMALL_CHARACTER))
    notes = [line for note in table.notes for line in textwrap.wrap(drawable(note), note_length)]
    width = 2 * _MARGIN + max(inner, *(len(line) * _SMALL_CHARACTER for line in (*notes, "")), 0)
    heading = 0.34
    head = line_height(_SIZE) * max(map(len, titles)) + 2 * _PADDING
    heights = [_height(row) for row in table.rows]
    height = 2 * _MARGIN + heading + head + sum(heights) + 2 * _PADDING + line_height(_SMALL_SIZE) * len(notes)
    sheet = Sheet(width, height, theme)
    sheet.text(_MARGIN, _MARGIN, table.title, size=12)
    y = _MARGIN + heading
    lefts = [_MARGIN + sum(widths[:number]) + _GAP * number for number in range(len(widths))]
    for column, left, column_width, lines in zip(table.columns, lefts, widths, titles, strict=True):
        for number, line in enumerate(lines):
            _put(sheet, column, (left, column_width), y + number * line_height(_SIZE), line, color=theme.faint)
    y += head
    for row, row_height in zip(table.rows, heights, strict=True):
        sheet.rule(y, _MARGIN, _MARGIN + inner)
        for column, left, column_width, cell in zip(table.columns, lefts, widths, row, strict=True):
            text = shortened(cell.text, _LONGEST) + _ARROWS.get(cell.mark, "")
            _put(sheet, column, (left, column_width), y + _PADDING, text, bold=bool(cell.mark))
            if cell.small:
                small = shortened(cell.small, _LONGEST_SMALL)
                below = y + _PADDING + line_height(_SIZE)
                _put(sheet, column, (left, column_width), below, small, size=_SMALL_SIZE, color=theme.faint)
        y += row_height
    sheet.rule(y, _MARGIN, _MARGIN + inner)
    for number, line in enumerate(notes):
        sheet.text(
            _MARGIN, y + 2 * _PADDING + number * line_height(_SMALL_SIZE), line, size=_SMALL_SIZE, color=theme.faint
        )
    return sheet.figure


def _title_lines(column: Column) -> list[str]:
    lines = textwrap.wrap(drawable(column.title), _LONGEST_TITLE)
    return [*lines, *textwrap.wrap(drawable(column.small), _LONGEST_TITLE)]


def _put(
    sheet: Sheet,
    column: Column,
    place: tuple[float, float],
    y: float,
    text: str,
    *,
    size: float = _SIZE,
    color: str | None = None,
    bold: bool = False,
) -> None:
    """Write into a column, whose left side and width are its place: numbers at its right."""
    left, width = place
    x = left + width if column.is_number else left
    sheet.text(x, y, text, size=size, color=color, bold=bold, align="right" if column.is_number else "left")


def _width(title: Sequence[str], cells: Sequence[Cell]) -> float:
    longest = max((len(shortened(cell.text, _LONGEST)) + 2 * (cell.mark in _ARROWS) for cell in cells), default=0)
    small = max((len(shortened(cell.small, _LONGEST_SMALL)) for cell in cells), default=0)
    return max(_CHARACTER * max(longest, *map(len, title), 1), _SMALL_CHARACTER * small)


def _height(row: Sequence[Cell]) -> float:
    small = line_height(_SMALL_SIZE) if any(cell.small for cell in row) else 0.0
    return line_height(_SIZE) + small + 2 * _PADDING
