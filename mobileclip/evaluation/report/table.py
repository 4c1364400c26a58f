"""A table as a value, independent of how it is drawn."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Cell:
    """One cell.

    Args:
        text: what it says; empty where there is nothing to say.
        small: a second line in smaller letters.
    """

    text: str = ""
    small: str = ""


@attrs.frozen(kw_only=True)
class Column:
    """One column.

    Args:
        title: above it.
        is_number: whether its cells are numbers, which stand at the right.
        small: a second line in smaller letters.
    """

    title: str
    is_number: bool = True
    small: str = ""


@attrs.frozen(kw_only=True)
class Table:
    """A table.

    Args:
        title: above it.
        columns: from left to right; the first one names the rows.
        rows: from top to bottom, each with a cell for every column.
        notes: below it, a paragraph each.

    Raises:
        ValueError: if a row has more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} of {self.title!r} has {len(row)} cells for {len(self.columns)} columns")

    def turned(self, corner: str) -> Table:
        """Return the table with its rows as columns, all of them numbers.

        Args:
            corner: what the rows are now, which stands above their names.
        """
        names, *others = zip(*self.rows, strict=True)
        heads = (Column(title=corner, is_number=False), *(Column(title=one.text, small=one.small) for one in names))
        rows = (
            (Cell(text=column.title, small=column.small), *cells)
            for column, cells in zip(self.columns[1:], others, strict=True)
        )
        return attrs.evolve(self, columns=heads, rows=tuple(rows))


def per_cent(value: float | None, *, digits: int = 1) -> str:
    """Return a fraction of one in per cent, and nothing for None."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def points(value: float, *, digits: int = 1) -> str:
    """Return a difference of fractions of one in percentage points, with its sign."""
    text = f"{100 * value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text if any(digit in text for digit in "123456789") else text.lstrip("+\N{MINUS SIGN}")
