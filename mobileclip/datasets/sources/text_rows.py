"""Rows of `.jsonl`, `.csv` and `.tsv` files and where they lie, in little memory, whatever the file holds.

Arrow's readers of these forms do not serve: one bad line of JSON, a quotation mark that is never closed, or a line
longer than a block ends the reading, text that is not UTF-8 passes, and nothing says at which byte a row begins.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import IO, Any

import attrs

from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.records import MAX_LINE_BYTES, parse_row

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"


@attrs.frozen(kw_only=True)
class TextForm:
    """The format of a row: a line of JSON, or cells with a delimiter and quoting.

    Args:
        delimiter: one character between the cells; none where a row is a line of JSON.
        quoted: whether cells in quotation marks may hold it, line breaks, and quotation marks twice (RFC 4180);
            otherwise quotation marks are like every other character.
    """

    delimiter: str | None
    quoted: bool = False


JSON = TextForm(delimiter=None)
CSV = TextForm(delimiter=",", quoted=True)
TSV = TextForm(delimiter="\t")


@attrs.frozen(kw_only=True)
class TextRow:
    """A row of a file.

    Args:
        line: number of its first line, from 1.
        num_bytes: up to its end, with the blank lines in front of it.
        num_lines: likewise.
        cells: a list of texts, or a line that is to be JSON; the reason why it cannot be read otherwise.
    """

    line: int
    num_bytes: int
    num_lines: int
    cells: Any

    def named(self, names: Sequence[str]) -> dict[str, Any] | BadSampleError:
        """Return the cells by the names of their columns, or the object of a line; why it cannot be read otherwise."""
        if isinstance(self.cells, BadSampleError):
            return self.cells
        try:
            if isinstance(self.cells, bytes):
                return parse_row(self.cells, f"line {self.line}")
        except BadSampleError as error:
            return error
        if len(self.cells) != len(names):
            return BadSampleError("bad_row", f"line {self.line} has {len(self.cells)} cells, expected {len(names)}")
        return dict(zip(names, self.cells, strict=True))


@attrs.frozen(kw_only=True)
class Part:
    """A range of rows of a file.

    Args:
        start: byte at which the first row begins.
        first_line: number of its line, from 1.
        first_row: its number, from 1.
        num_rows: number of rows.
        digest: of the lines.
    """

    start: int
    first_line: int
    first_row: int
    num_rows: int
    digest: str


class TextRows:
    """The rows of a file from its position on; blank lines are none.

    A row that cannot be read has the reason, and the next one begins on the line behind it. A quotation mark that is
    never closed takes what follows with it, up to 131,072 characters: as much as `csv` lets a cell have.

    Args:
        stream: the file.
        form: what a row is.
        first_line: number of the line at the position.
    """

    def __init__(self, stream: IO[bytes], form: TextForm, first_line: int = 1) -> None:
        self._lines = _Lines(stream, first_line)
        self._csv = None
        if form.delimiter is not None:
            self._csv = csv.reader(
                map(self._lines.decode, self._lines),
                delimiter=form.delimiter,
                quoting=csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE,
                quotechar='"' if form.quoted else None,
                strict=True,
            )

    def __iter__(self) -> Iterator[TextRow]:
        """Return this."""
        return self

    def __next__(self) -> TextRow:
        """Return the next row."""
        lines = self._lines
        lines.num_bytes = lines.num_lines = 0
        cells: Any = None
        while cells is None:
            lines.begin()
            try:
                cells = self._cells()
            except csv.Error as error:
                detail = f"the row from line {lines.first} to {lines.last} cannot be read: {error}"
                cells = BadSampleError("bad_row", detail)
            except BadSampleError as error:
                cells = error
        return TextRow(line=lines.first, num_bytes=lines.num_bytes, num_lines=lines.num_lines, cells=cells)

    def header(self, path: str) -> TextRow:
        """Return the row with the names of the columns, which comes next.

        Args:
            path: of the file, for messages.

        Raises:
            ValueError: if there is none, or it cannot be read.
        """
        first = next(self, None)
        if first is None:
            raise ValueError(f"{path} is empty; expected a line with the names of the columns")
        if isinstance(first.cells, BadSampleError):
            raise ValueError(f"the names of the columns of {path} cannot be read: {first.cells.detail}")
        return first

    def parts(self, size: int, *, start: int = 0, first_line: int = 1) -> Iterator[Part]:
        """Yield ranges of the rows that are left.

        Args:
            size: rows of each but the last one.
            start: byte at the position.
            first_line: number of the line there.
        """
        self._lines.digest = blake2b(digest_size=16)
        first_row = 1
        while some := [(row.num_bytes, row.num_lines) for row in islice(self, size)]:
            digest, self._lines.digest = self._lines.digest.hexdigest(), blake2b(digest_size=16)
            yield Part(start=start, first_line=first_line, first_row=first_row, num_rows=len(some), digest=digest)
            first_row += len(some)
            start += sum(num_bytes for num_bytes, _ in some)
            first_line += sum(num_lines for _, num_lines in some)

    def _cells(self) -> Any:
        """Return what is in the next row; None for a blank line."""
        if self._csv is not None:
            cells = next(self._csv)
            if self._lines.is_undecodable:
                raise BadSampleError("bad_text", f"the row from line {self._lines.first} is not UTF-8")
            return cells or None
        line = next(self._lines)
        return line if line.strip() else None


class _Lines:
    """Lines one at a time, with what a row has taken of them; goes on behind a line that is too long."""

    def __init__(self, stream: IO[bytes], first: int) -> None:
        self._stream = stream
        self.digest = blake2b(digest_size=16)
        self.last = first - 1
        self.num_bytes = self.num_lines = 0
        self.begin()

    def begin(self) -> None:
        """Take note that a row, or a blank line, begins."""
        self.first = self.last + 1
        self._row_bytes = 0
        self.is_undecodable = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = self._stream.readline(MAX_LINE_BYTES)
        if not data:
            raise StopIteration
        size, rest = len(data), data
        while not rest.endswith(b"\n") and (rest := self._stream.readline(MAX_LINE_BYTES)):
            size += len(rest)
        self.num_bytes, self.num_lines, self.last = self.num_bytes + size, self.num_lines + 1, self.last + 1
        self._row_bytes += size
        self.digest.update(data if size <= MAX_LINE_BYTES else b"%d " % size)
        if self._row_bytes > MAX_LINE_BYTES:
            detail = f"the row from line {self.first} has {self._row_bytes} bytes; {MAX_LINE_BYTES} are enough"
            raise BadSampleError("line_too_long", detail)
        return data

    def decode(self, line: bytes) -> str:
        """Return a line as text; of one that is not, its row takes note."""
        try:
            return (line.removeprefix(_BOM) if self.last == 1 else line).decode()
        except UnicodeDecodeError:
            self.is_undecodable = True
            return line.decode(errors="replace")


def check_plain(path: str, stream: IO[bytes]) -> None:
    """Refuse a compressed file, in which nothing can be found by its place.

    Raises:
        ValueError: if it is one.
    """
    if stream.read(2) == _GZIP:
        raise ValueError(f"{path} is compressed, so its rows cannot be found; decompress it first")
    stream.seek(0)
