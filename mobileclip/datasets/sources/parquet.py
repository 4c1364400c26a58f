"""Rows of `.parquet` files: read by Apache Arrow (extra `parquet`), row group by row group, and by no row's program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.skips import BadSampleError
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LABEL = "label"
"""The column with the class of an image: its name, or its number."""

# Rows that are decoded at once, fewer where they hold images, and bytes that are read at once of a column.
_NUM_ROWS, _NUM_IMAGES = 256, 16
_BUFFER_BYTES = 2**20
_MOST_FEATURES = 2**24


@attrs.frozen(kw_only=True)
class ParquetContent:
    """The footer of a Parquet file: columns that can be used, class names and the number of rows.

    Args:
        columns: names of the columns whose cells JSON can hold: texts, numbers, truth values, and lists and structures
            of these.
        images: names of the columns that hold images as the Hugging Face hub does: structures of `bytes` and `path`.
        class_names: of a `label` that is a number, where the file says what the numbers are called, as on the hub.
        num_rows: of all row groups.
    """

    columns: tuple[str, ...]
    images: tuple[str, ...]
    class_names: tuple[str, ...]
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


def text_column(values: Sequence[str | None]) -> pa.Array:
    """Return a column of texts; of bytes, where a text holds some, as keys from tar files may.

    It is made of its parts: to look at a list, Arrow imports pandas where that is installed, with 50 MB of memory.
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
    """Return the keys in such a column."""
    import pyarrow as pa

    return [key.decode(errors="surrogateescape") for key in column.cast(pa.large_binary()).to_pylist()]


def read_content(path: str) -> ParquetContent:
    """Return the columns and the number of rows; no row is read.

    Raises:
        OSError: if it cannot be read.
        ValueError: if two columns have one name.
        ImportError: if Arrow is not installed.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        return ParquetContent(
            columns=tuple(field.name for field in schema if _fits_json(field.type)),
            images=tuple(field.name for field in schema if _holds_images(field.type)),
            class_names=_class_names((schema.metadata or {}).get(b"huggingface", b"")),
            num_rows=file.metadata.num_rows,
        )


def read_rows(
    path: str, columns: Sequence[str], first: int, count: int, *, held: str | None = None, images: bool = True
) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield rows of a file; those of the same row group in front of the first are decoded and passed over.

    Args:
        path: of the file.
        columns: that are read.
        first: number of the first row, from 0.
        count: of rows.
        held: the column with images, if there is one.
        images: whether they are read, and not their paths alone.

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
        # Where an image is missing, its path says where it is.
        images = images or any(_may_lack(file, group, f"{held}.bytes") for group in groups)
        names = [name if name != held or images else f"{held}.path" for name in columns]
        size = _NUM_IMAGES if held is not None and images else _NUM_ROWS
        for batch in file.iter_batches(size, row_groups=groups, columns=names, use_threads=False):
            skipped = max(0, first - start)
            yield from _values(batch.slice(skipped, max(0, first + count - start - skipped)))
            start += batch.num_rows
            if start >= first + count:
                return


def _may_lack(file: pq.ParquetFile, group: int, leaf: str) -> bool:
    content = file.metadata.row_group(group)
    columns = (content.column(number) for number in range(content.num_columns))
    found = [column.statistics for column in columns if column.path_in_schema == leaf]
    return any(one is None or not one.has_null_count or one.null_count > 0 for one in found)


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


def _class_names(features: bytes) -> tuple[str, ...]:
    """Return what the numbers in `label` are called; none where what the hub says of the columns does not tell."""
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
    is_held = "bytes" in fields and (types.is_binary(fields["bytes"]) or types.is_large_binary(fields["bytes"]))
    return is_held and "path" in fields and _fits_json(fields["path"])


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
