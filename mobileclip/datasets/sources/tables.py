"""Reads tables (CSV, TSV, Parquet, JSON Lines) in ranges of rows, so that several workers can share a table.

Apache Arrow (extra `parquet`) decodes CSV, TSV and Parquet. Python decodes JSON Lines, because fields and types
differ from row to row, and Arrow would reject a whole block for one bad row. A bad row does not affect other rows.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain, groupby, islice
from typing import IO, TYPE_CHECKING, Any, TypeVar

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.base import MAX_LINE_BYTES, parse_row
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import parse_json, repeated

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LINES = (".jsonl", ".ndjson")
"""Suffixes of files with one JSON object per line."""
TABLES = (".parquet", ".csv", ".tsv")
"""Suffixes of tables."""
LABEL = "label"
"""The column with the name or number of an image's class."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NOTE = b"mobileclip"
_BOM, _GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"
# Number of rows to decode per batch (without images, with images), then number of bytes per read of a column.
_NUM_ROWS, _NUM_IMAGES = 256, 16
_BUFFER_BYTES = 2**20
# A quotation mark without a closing mark within this number of bytes is an error of its line.
_MOST_QUOTED_BYTES = 2**17
_MOST_FEATURES = 2**24
_MOST_NOTED_BYTES = 2**32
_COUNTED = re.compile(r"Expected \d+ columns, got (\d+)")

T = TypeVar("T")
Row = tuple[int, str, "dict[str, Any] | BadSampleError"]
"""A row: the row number, the row name in messages, and the cells by column or the error of an unreadable row."""


@attrs.frozen(kw_only=True)
class Part:
    """A range of the rows of a table.

    Args:
        first_row: number of the first row, from 1.
        num_rows: number of rows.
        start: offset of the first row in a text file, in bytes; 0 for Parquet.
        first_line: line number of the first row in a text file, from 1.
        digest: digest of the lines in the range of a text file; empty for Parquet.
    """

    first_row: int
    num_rows: int
    start: int = 0
    first_line: int = 1
    digest: str = ""


@attrs.frozen(kw_only=True)
class Table:
    """A table, opened by `open_table`.

    Args:
        path: path or URL of the table.
        suffix: suffix that determines the format, such as `.csv`.
        columns: names of the columns that JSON can represent: strings, numbers, booleans, and lists and structs of
            strings, numbers and booleans. Empty for JSON Lines, because fields may differ from line to line.
        images: names of the columns with images in the Hugging Face format: structs of `bytes` and `path`.
        class_names: names of the classes for a numeric `label`; empty if the file has no names in the Hugging Face
            format.
        whole: range of all rows; for a text file, only the start of the range is known, and `num_rows` is 0.
    """

    path: str
    suffix: str
    columns: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    whole: Part

    def parts(self, size: int) -> Iterator[Part]:
        """Yield ranges of `size` rows; the last range may have fewer rows.

        Raises:
            OSError: if the table cannot be read.
        """
        if self.suffix == ".parquet":
            for start in range(0, self.whole.num_rows, size):
                yield Part(first_row=start + 1, num_rows=min(size, self.whole.num_rows - start))
            return
        first, start, line = self.whole.first_row, self.whole.start, self.whole.first_line
        with storage.open_read(self.path) as stream:
            stream.seek(start)
            numbered = enumerate(text_rows(stream, self.suffix, line))
            for _, some in groupby(numbered, lambda one: one[0] // size):
                digest, end = blake2b(digest_size=16), first
                for _, row in some:
                    digest.update(row.read)
                    end += 1
                yield Part(
                    first_row=first, num_rows=end - first, start=start, first_line=line, digest=digest.hexdigest()
                )
                first, start, line = end, self.whole.start + row.end, row.last_line + 1

    def rows(
        self,
        part: Part | None = None,
        columns: Sequence[str] | None = None,
        *,
        held: str | None = None,
        images: bool = True,
    ) -> Iterator[Row]:
        """Yield the rows of a range; in JSON Lines, the row number is the line number.

        Args:
            part: range of rows; None for all rows.
            columns: names of the columns to read; None for all columns.
            held: name of the column with images; None without images.
            images: whether to read the image bytes in the column `held`, not only the image paths.

        Raises:
            OSError: if the table cannot be read.
        """
        columns = self.columns if columns is None else columns
        if self.suffix == ".parquet":
            found = _parquet_rows(self.path, columns, part or self.whole, held=held, images=images)
            for number, cells in enumerate(found, (part or self.whole).first_row):
                yield number, f"row {number}", cells
            return
        with storage.open_read(self.path) as stream:
            first = part or self.whole
            stream.seek(first.start)
            rows = text_rows(stream, self.suffix, first.first_line)
            rows = rows if part is None else islice(rows, part.num_rows)
            number = first.first_row
            while some := list(islice(rows, _NUM_ROWS)):
                is_json = self.suffix in LINES
                decoded = map(_parsed_line, some) if is_json else _cells(some, self.suffix, self.columns, columns)
                for row, cells in zip(some, decoded, strict=True):
                    yield row.line if is_json else number, row.label, cells
                    number += 1


def open_table(path: str, suffix: str = "", *, header: Sequence[str] = ()) -> Table:
    """Open a table and read the column names, from the footer of a Parquet file or the header line of a text file.

    Args:
        path: path or URL of the table.
        suffix: suffix of the format, such as `.csv`; empty for the suffix of the file name.
        header: column names of a CSV or TSV file without a header line; empty to read the header line.

    Raises:
        OSError: if the table cannot be read.
        ValueError: if the table is empty or compressed, the header line is malformed, or two columns have the same
            name.
        ImportError: if Apache Arrow is not installed (extra `parquet`), except for JSON Lines.
    """
    suffix = suffix or f".{storage.file_name(path).rpartition('.')[2].lower()}"
    table = _open_parquet(path) if suffix == ".parquet" else _open_text(path, suffix, tuple(header))
    if twice := repeated((*table.columns, *table.images)):
        raise ValueError(f"{path} has two columns named {twice[0][:80]!r}; rename a column")
    return table


def _open_text(path: str, suffix: str, header: tuple[str, ...]) -> Table:
    whole = Part(first_row=1, num_rows=0)
    with storage.open_read(path) as stream:
        if stream.read(2) == _GZIP:
            raise ValueError(f"{path} is compressed, so readers cannot find the rows; decompress the file first")
        if suffix not in _DELIMITERS:
            return Table(path=path, suffix=suffix, whole=whole)
        with needed(f"the table {path}", "parquet"):
            import pyarrow as pa
            from pyarrow import csv
        if header:
            return Table(path=path, suffix=suffix, columns=header, whole=whole)
        stream.seek(0)
        first = next(text_rows(stream, suffix), None)
    if first is None:
        raise ValueError(f"{path} is empty; expected a line with the column names")
    try:
        if isinstance(first.content, BadSampleError):
            raise first.content
        options = csv.ReadOptions(use_threads=False, block_size=len(first.content) + 2)
        names = csv.read_csv(pa.BufferReader(first.content + b"\n"), options, _parse_options(suffix)).column_names
    except (pa.ArrowException, BadSampleError, UnicodeDecodeError) as error:
        why = "the line is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"the column names of {path} cannot be read: {why}") from None
    whole = attrs.evolve(whole, start=first.end, first_line=first.last_line + 1)
    return Table(path=path, suffix=suffix, columns=tuple(names), whole=whole)


@attrs.frozen(kw_only=True)
class TextRow:
    """A row of a text file.

    Args:
        line: number of the row's first line, from 1.
        last_line: number of the row's last line.
        end: number of bytes from the start of reading to the end of the row.
        content: bytes of the row, or the error of an unreadable row.
        read: bytes for the digest of a range, including blank lines before the row.
    """

    line: int
    last_line: int
    end: int
    content: bytes | BadSampleError
    read: bytes

    @property
    def label(self) -> str:
        """Name of the row in messages."""
        return f"line {self.line}"


def text_rows(stream: IO[bytes], suffix: str, line: int = 1) -> Iterator[TextRow]:
    """Yield the rows of a text file from the current position, without blank lines and with bounded memory.

    In CSV, cells in quotation marks may contain line breaks (RFC 4180). An unclosed quotation mark makes only one line
    unusable.

    Args:
        stream: the text file.
        suffix: suffix of the format.
        line: line number at the current position.
    """
    lines, ahead, end, blank = _lines(stream), deque[tuple[bytes, int]](), 0, b""
    while (first := ahead.popleft() if ahead else next(lines, None)) is not None:
        some = [first]
        if suffix == ".csv" and first[0].count(b'"') % 2:
            some += _closing(ahead, lines, first[1])
        data, size = b"".join(part for part, _ in some), sum(length for _, length in some)
        content: bytes | BadSampleError = data
        end += size
        if not data.strip(b" \r\n"):
            blank, line = blank + data, line + 1
            continue
        read = data
        if size > MAX_LINE_BYTES:
            detail = f"the row from line {line} has {size} bytes, expected at most {MAX_LINE_BYTES}"
            content, read = BadSampleError("line_too_long", detail), b"%d " % size
        elif suffix == ".csv" and data.count(b'"') % 2:
            content = BadSampleError("bad_row", f"line {line} has an unclosed quotation mark")
        elif line == 1 and suffix in _DELIMITERS:
            content = data.removeprefix(_BOM)
        last = line + len(some) - 1
        yield TextRow(line=line, last_line=last, end=end, content=content, read=blank + read)
        blank, line = b"", last + 1


def _parsed_line(row: TextRow) -> dict[str, Any] | BadSampleError:
    try:
        return row.content if isinstance(row.content, BadSampleError) else parse_row(row.content, row.label)
    except BadSampleError as error:
        return error


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield each line, or the beginning of a long line, with the size of the line."""
    while data := stream.readline(MAX_LINE_BYTES):
        size, rest = len(data), data
        while not rest.endswith(b"\n") and (rest := stream.readline(MAX_LINE_BYTES)):
            size += len(rest)
        yield data, size


def _closing(ahead: deque[tuple[bytes, int]], lines: Iterator[tuple[bytes, int]], size: int) -> list[tuple[bytes, int]]:
    """Take the lines up to the closing quotation mark; return an empty list without a closing mark nearby."""
    number = 0
    while size <= _MOST_QUOTED_BYTES:
        if number == len(ahead):
            ahead.extend(islice(lines, 1))
        if number == len(ahead):
            return []
        data, length = ahead[number]
        size, number = size + length, number + 1
        if data.count(b'"') % 2:
            return [ahead.popleft() for _ in range(number)]
    return []


def _parse_options(suffix: str) -> Any:
    from pyarrow import csv

    is_quoted = suffix == ".csv"
    return csv.ParseOptions(
        delimiter=_DELIMITERS[suffix], quote_char='"' if is_quoted else False, newlines_in_values=is_quoted
    )


def _cells(
    rows: Sequence[TextRow], suffix: str, names: Sequence[str], columns: Sequence[str]
) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield the cells of rows as strings, by column; after an error, decode each half of the rows separately."""
    import pyarrow as pa
    from pyarrow import csv

    if len(rows) == 1 and isinstance(rows[0].content, BadSampleError):
        yield rows[0].content
        return
    data = b"".join(row.content.rstrip(b"\r\n") + b"\n" for row in rows if isinstance(row.content, bytes))
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(column_names=list(names), use_threads=False, block_size=len(data) + 1),
            _parse_options(suffix),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=list(columns), strings_can_be_null=False
            ),
        )
        problem = f"Arrow found {table.num_rows} rows"
        if table.num_rows == len(rows):
            yield from table.to_pylist()
            return
    except pa.ArrowInvalid as error:
        problem = str(error)
    if len(rows) == 1:
        if "UTF8" in problem:
            yield BadSampleError("bad_text", f"{rows[0].label} is not UTF-8")
            return
        counted = _COUNTED.search(problem)
        detail = f"cannot be read: {problem}" if counted is None else f"has {counted[1]} cells, expected {len(names)}"
        yield BadSampleError("bad_row", f"{rows[0].label} {detail}")
        return
    middle = len(rows) // 2
    yield from _cells(rows[:middle], suffix, names, columns)
    yield from _cells(rows[middle:], suffix, names, columns)


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    with needed(f"the table {path}", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    with storage.open_read(path) as stream:
        try:
            yield pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise_machine_fault(error)
            if isinstance(error, OSError) and (error.errno is not None or isinstance(error, storage.StorageError)):
                raise
            raise OSError(f"the file is damaged, or not a Parquet file: {str(error).strip()}") from None


def text_column(values: Sequence[str | None]) -> pa.Array:
    """Return a column of strings; a column of bytes if a string, such as a key from a tar file, is not valid UTF-8.

    To convert a list, Arrow would import pandas if pandas is installed (50 MB of memory), so the function builds the
    column from buffers.
    """
    import pyarrow as pa

    found = [b"" if value is None else value.encode(errors="surrogateescape") for value in values]
    offsets = np.zeros(len(found) + 1, np.int64)
    np.cumsum([len(one) for one in found], out=offsets[1:])
    is_there = np.packbits(np.array([value is not None for value in values], bool), bitorder="little")
    content = b"".join(found)
    try:
        content.decode()
        kind = pa.large_string()
    except UnicodeDecodeError:
        kind = pa.large_binary()
    return pa.Array.from_buffers(kind, len(found), [pa.py_buffer(part) for part in (is_there, offsets, content)])


def read_keys(column: pa.ChunkedArray) -> list[str]:
    """Return the strings in a column from `text_column`."""
    import pyarrow as pa

    return [key.decode(errors="surrogateescape") for key in column.cast(pa.large_binary()).to_pylist()]


def write_annotated_table(path: str, table: pa.Table, note: object) -> None:
    """Write a Parquet file atomically, with a note as JSON in the file metadata.

    Args:
        path: path or URL of the file; the function creates a missing folder.
        table: rows of the file.
        note: instance of a class that `mobileclip.serialization` supports.
    """
    import pyarrow.parquet as pq

    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        noted = table.replace_schema_metadata({_NOTE: to_json(note)})
        pq.write_table(noted, stream, use_dictionary=False, write_page_checksum=True)


def read_annotated_table(path: str, kind: type[T], *, rows: bool = True) -> tuple[T, pa.Table | None] | None:
    """Read the note and rows from `write_annotated_table`; return None if the file is missing or damaged.

    Args:
        path: path or URL of the file.
        kind: class of the note.
        rows: whether to read the rows; without rows, the function reads only the end of a local file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        is_remote = storage.is_remote(path)
        source = (
            pa.BufferReader(storage.read_bytes(path, limit=_MOST_NOTED_BYTES))
            if is_remote
            else os.fspath(storage.local_path(path))
        )
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            note = from_json(file.schema_arrow.metadata[_NOTE].decode(errors="backslashreplace"), kind)
            return note, file.read(use_threads=False) if rows else None
    except storage.StorageError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise_machine_fault(error)
        return None


def _open_parquet(path: str) -> Table:
    with _opened(path) as file:
        schema = file.schema_arrow
        return Table(
            path=path,
            suffix=".parquet",
            columns=tuple(field.name for field in schema if _fits_json(field.type)),
            images=tuple(field.name for field in schema if _holds_images(field.type)),
            class_names=_class_names((schema.metadata or {}).get(b"huggingface", b"")),
            whole=Part(first_row=1, num_rows=file.metadata.num_rows),
        )


def _parquet_rows(
    path: str, columns: Sequence[str], part: Part, *, held: str | None, images: bool
) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield the rows of a range, after decoding and skipping earlier rows of the same row group."""
    first, end = part.first_row - 1, part.first_row - 1 + part.num_rows
    with _opened(path) as file:
        groups: list[int] = []
        start = position = 0
        for group in range(file.metadata.num_row_groups):
            stop = position + file.metadata.row_group(group).num_rows
            if position < end and stop > first:
                start = start if groups else position
                groups.append(group)
            position = stop
        # A row without image bytes refers to a file by path, so read the bytes of a column that may lack some.
        images = images or any(_may_lack(file, group, f"{held}.bytes") for group in groups)
        names = [name if name != held or images else f"{held}.path" for name in columns]
        size = _NUM_IMAGES if held is not None and images else _NUM_ROWS
        for batch in file.iter_batches(size, row_groups=groups, columns=names, use_threads=False):
            skipped = max(0, first - start)
            yield from _values(batch.slice(skipped, max(0, end - start - skipped)))
            start += batch.num_rows
            if start >= end:
                return


def _may_lack(file: pq.ParquetFile, group: int, leaf: str) -> bool:
    content = file.metadata.row_group(group)
    columns = (content.column(number) for number in range(content.num_columns))
    found = [column.statistics for column in columns if column.path_in_schema == leaf]
    return any(one is None or not one.has_null_count or one.null_count > 0 for one in found)


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield the rows as Python objects; for a row with a string that is not UTF-8, yield an error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield BadSampleError("bad_text", f"a cell is not UTF-8: {error}")
        else:
            yield from chain.from_iterable(_values(batch.slice(index, 1)) for index in range(batch.num_rows))


def _class_names(features: bytes) -> tuple[str, ...]:
    """Return the class names of a numeric `label` from Hugging Face features; empty if the features have no names."""
    try:
        label = parse_json(features.decode(), max_characters=_MOST_FEATURES)["info"]["features"][LABEL]
        names = label["names"] if label["_type"] == "ClassLabel" else ()
    except (ValueError, TypeError, LookupError):
        return ()
    is_list = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    return tuple(names) if is_list else ()


def _holds_images(kind: pa.DataType) -> bool:
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    fields = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    is_inline = "bytes" in fields and (types.is_binary(fields["bytes"]) or types.is_large_binary(fields["bytes"]))
    return is_inline and "path" in fields and _fits_json(fields["path"])


def _fits_json(kind: pa.DataType) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if is_list or types.is_dictionary(kind):
        return _fits_json(kind.value_type)
    if types.is_struct(kind):
        return all(_fits_json(kind.field(index).type) for index in range(kind.num_fields))
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
