"""Rows of `.csv` and `.tsv` files and where they lie, one after another in little memory, whatever the file holds."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from hashlib import blake2b
from typing import IO

import attrs

from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.jsonl import Line, read_lines
from mobileclip.datasets.sources.records import MAX_LINE_BYTES

_BOM = b"\xef\xbb\xbf"


@attrs.frozen(kw_only=True)
class Delimited:
    """What stands between the cells of a row.

    Args:
        delimiter: one character.
        quoted: whether cells in quotation marks may hold it, line breaks, and quotation marks twice (RFC 4180);
            otherwise quotation marks are like every other character.
    """

    delimiter: str
    quoted: bool


CSV = Delimited(delimiter=",", quoted=True)
TSV = Delimited(delimiter="\t", quoted=False)


@attrs.frozen(kw_only=True)
class DelimitedRow:
    """A row of a file.

    Args:
        line: number of its first line, from 1.
        num_bytes: up to its end, with the blank lines in front of it.
        num_lines: likewise.
        cells: its texts; empty where there is a problem.
        problem: why it cannot be used.
    """

    line: int
    num_bytes: int
    num_lines: int
    cells: tuple[str, ...] = ()
    problem: BadSampleError | None = None


class DelimitedRows:
    """The rows of a file from its position on; blank lines are none.

    A row that cannot be read has a problem, and the next one begins on the line behind it. A quotation mark that is
    never closed takes what follows with it, up to 131,072 characters: as much as `csv` lets a cell have.

    Args:
        stream: the file.
        form: what stands between the cells.
        first_line: number of the line at the position.
    """

    def __init__(self, stream: IO[bytes], form: Delimited, first_line: int = 1) -> None:
        self._lines = _Lines(read_lines(stream, first_line))
        self._reader = csv.reader(
            self._lines,
            delimiter=form.delimiter,
            quoting=csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE,
            quotechar='"' if form.quoted else None,
            strict=True,
        )

    def digest(self) -> str:
        """Return a hash of all lines since the last call, and begin anew."""
        digest, self._lines.digest = self._lines.digest.hexdigest(), blake2b(digest_size=16)
        return digest

    def __iter__(self) -> Iterator[DelimitedRow]:
        """Return this."""
        return self

    def __next__(self) -> DelimitedRow:
        """Return the next row."""
        self._lines.begin()
        while True:
            self._lines.first = None
            problem, cells = None, []
            try:
                cells = next(self._reader)
            except csv.Error as error:
                problem = BadSampleError("bad_row", f"{self._label()} cannot be read: {error}")
            except BadSampleError as error:
                problem = error
            if problem is None and not cells:
                continue
            if self._lines.undecodable and problem is None:
                problem = BadSampleError("bad_text", f"{self._label()} is not UTF-8")
            return DelimitedRow(
                line=self._lines.first or 1,
                num_bytes=self._lines.num_bytes,
                num_lines=self._lines.num_lines,
                cells=() if problem else tuple(cells),
                problem=problem,
            )

    def _label(self) -> str:
        return f"the row from line {self._lines.first} to {self._lines.last}"


class _Lines:
    """Lines as texts, one at a time, with what a row has taken of them; goes on behind a line that is too long."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.digest = blake2b(digest_size=16)
        self.first: int | None = None
        self.last = 0
        self.begin()

    def begin(self) -> None:
        """Take note that a row begins."""
        self.first = None
        self.num_bytes = self.num_lines = 0
        self.undecodable = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.num_bytes += line.num_bytes
        self.num_lines += 1
        self.last = line.number
        self.first = line.number if self.first is None else self.first
        self.digest.update(b"%d " % line.num_bytes if line.data is None else line.data)
        if line.data is None or self.num_bytes > MAX_LINE_BYTES:
            detail = f"the row from line {self.first} on has more than {MAX_LINE_BYTES} bytes"
            raise BadSampleError("line_too_long", detail)
        data = line.data.removeprefix(_BOM) if line.number == 1 else line.data
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.undecodable = True
            return data.decode(errors="replace")
