"""Rows of `.parquet` files: read by Apache Arrow (extra `parquet`), row group by row group, and by no row's program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import storage
from mobileclip.data.skips import BadSampleError
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows that are decoded at once, and bytes that are read at once of a column.
_NUM_ROWS = 256
_BUFFER_BYTES = 2**20


@attrs.frozen(kw_only=True)
class ParquetContent:
    """What the end of a file says of it.

    Args:
        columns: names of the columns whose cells JSON can hold: texts, numbers, truth values, and lists and structures
            of these.
        num_rows: of all row groups.
    """

    columns: tuple[str, ...]
    num_rows: int


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
            raise OSError(f"it is damaged, or no Parquet file: {str(error).strip()}") from None


def read_content(path: str) -> ParquetContent:
    """Return the columns and the number of rows; no row is read.

    Raises:
        OSError: if it cannot be read.
        ValueError: if two columns have one name.
        ImportError: if Arrow is not installed.
    """
    with _opened(path) as file:
        return ParquetContent(
            columns=tuple(field.name for field in file.schema_arrow if _fits_json(field.type)),
            num_rows=file.metadata.num_rows,
        )


def read_rows(path: str, columns: Sequence[str], first: int, count: int) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield rows of a file; those of the same row group in front of the first are decoded and passed over.

    Args:
        path: of the file.
        columns: that are read.
        first: number of the first row, from 0.
        count: of rows.

    Raises:
        OSError: if it cannot be read.
    """
    with _opened(path) as file:
        groups: list[int] = []
        start = position = 0
        for group in range(file.metadata.num_row_groups):
            end = position + file.metadata.row_group(group).num_rows
            if position < first + count and end > first:
                start = start if groups else position
                groups.append(group)
            position = end
        for batch in file.iter_batches(_NUM_ROWS, row_groups=groups, columns=list(columns), use_threads=False):
            skipped = max(0, first - start)
            yield from _values(batch.slice(skipped, max(0, first + count - start - skipped)))
            start += batch.num_rows
            if start >= first + count:
                return


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield the rows as Python has them; a cell that is no text costs its row alone."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield BadSampleError("bad_text", f"a cell is not UTF-8: {error}")
            return
        for index in range(batch.num_rows):
            yield from _values(batch.slice(index, 1))


def _fits_json(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _fits_json(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _fits_json(kind.value_type)
    if types.is_struct(kind):
        return all(_fits_json(kind.field(index).type) for index in range(kind.num_fields))
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
