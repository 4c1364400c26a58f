"""Files of rows: Apache Parquet that any reader of it opens, with the embeddings as lists of one length."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.manifest import Segment
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDING = "embedding"
_TYPES = {
    "id": "int64",
    "path": "string",
    "part": "string",
    "size": "int64",
    "mtime_ns": "int64",
    "sha256": "string",
    "width": "int32",
    "height": "int32",
    "camera": "string",
    "taken": "string",
    "latitude": "float64",
    "longitude": "float64",
    "time": "float64",
    "problem": "string",
}
_ALWAYS_THERE = frozenset(("id", "path", "size", "mtime_ns", "sha256", "width", "height", EMBEDDING))
_LATER = ("time",)
COLUMNS = tuple(_TYPES)
"""Of every row, beside its embedding."""

_MOST_BYTES = 2**34


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """A picture in an index, or a file that is none.

    Args:
        path: of the file that it is in, in full.
        part: key of its sample, where the file holds several.
        size: of the picture as it is encoded, in bytes; of a video's frame, of the video.
        mtime_ns: when the file was last changed, in nanoseconds since 1970.
        sha256: of the picture as it is encoded, or of the video; empty where it could not be read.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        camera: see `CameraNotes`.
        taken: see `CameraNotes`.
        latitude: see `CameraNotes`.
        longitude: see `CameraNotes`.
        time: of a video's frame, in seconds since the first one.
        problem: why there is no embedding; None where there is one.
        embedding: `(dim,)`, of unit length; zeros where there is none.
    """

    path: str
    part: str | None = None
    size: int
    mtime_ns: int
    sha256: str
    width: int = 0
    height: int = 0
    camera: str | None = None
    taken: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    time: float | None = None
    problem: str | None = None
    embedding: NDArray[np.floating[Any]]


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and its reader of Parquet.

    Raises:
        ImportError: if it is not installed; the message has the command that installs it.
    """
    with needed("an index of pictures", "collections"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    return pa, pq


def schema(dim: int) -> pa.Schema:
    """Return the columns of a segment whose embeddings have so many numbers."""
    pa, _ = arrow()
    fields = [pa.field(name, getattr(pa, kind)(), nullable=name not in _ALWAYS_THERE) for name, kind in _TYPES.items()]
    return pa.schema([*fields, pa.field(EMBEDDING, _vector_type(dim), nullable=False)])


def table_of(rows: Sequence[Row], dim: int) -> pa.Table:
    """Return rows as a table, with the ids from 0 on.

    Args:
        rows: at least one.
        dim: numbers in an embedding.
    """
    pa, _ = arrow()
    columns = {"id": range(len(rows))} | {
        name: [getattr(row, name) for row in rows] for name in COLUMNS if name != "id"
    }
    vectors = np.stack([row.embedding for row in rows]).astype(np.float16)
    return pa.Table.from_arrays(
        [*(pa.array(values, type=getattr(pa, _TYPES[name])()) for name, values in columns.items()), _array(vectors)],
        schema=schema(dim),
    )


def packed(table: pa.Table) -> bytes:
    """Return a table for another process; pickled, it would lose that no number of an embedding is missing."""
    pa, _ = arrow()
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def unpacked(content: bytes) -> pa.Table:
    """Return the table that `packed` has made bytes of."""
    pa, _ = arrow()
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()


def numbered(tables: Sequence[pa.Table], first_id: int) -> pa.Table:
    """Return one table of the rows of several, with new ids.

    Args:
        tables: at least one, with the columns of `schema`.
        first_id: of the first row; the others follow.
    """
    pa, _ = arrow()
    table = pa.concat_tables(tables).combine_chunks()
    ids = pa.array(range(first_id, first_id + len(table)), type=pa.int64())
    return table.set_column(0, table.schema.field(0), ids)


def write_segment(folder: Path, name: str, table: pa.Table) -> Segment:
    """Write rows to a file, which appears whole or not at all, and return what a manifest says of it.

    Args:
        folder: of the index.
        name: of the file.
        table: with the columns of `schema`.

    Raises:
        OSError: if it cannot be written.
    """
    _, pq = arrow()
    stream = io.BytesIO()
    compression = dict.fromkeys(COLUMNS, "zstd") | {f"{EMBEDDING}.list.element": "none"}
    texts = [name for name, kind in _TYPES.items() if kind == "string" and name != "sha256"]
    pq.write_table(table, stream, compression=compression, use_dictionary=texts, write_statistics=["id"])
    content = stream.getvalue()
    with storage.atomic_write(folder / name) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    return Segment(name=name, num_rows=len(table), num_bytes=len(content), sha256=digest)


def read_segment(folder: Path, segment: Segment, dim: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a file, those that were removed included.

    Args:
        folder: of the index.
        segment: what the manifest says of it.
        dim: numbers in an embedding.
        columns: that are read; all by default.

    Raises:
        FileNotFoundError: if it is gone: another job has merged it with others since the manifest was read.
        ValueError: if it is not what the manifest says.
    """
    pa, pq = arrow()
    path = folder / segment.name
    content = storage.read_bytes(path, limit=min(segment.num_bytes, _MOST_BYTES))
    if len(content) != segment.num_bytes or hashlib.sha256(content).hexdigest() != segment.sha256:
        raise ValueError(
            f"{path} is damaged: it is not what was written; delete the index, and index the pictures again"
        )
    expected = schema(dim)
    chosen = expected if columns is None else pa.schema([expected.field(name) for name in columns])
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        written = [name for name in chosen.names if name in file.schema_arrow.names]
        # A thread of Arrow that gives these bytes back while the interpreter ends would end the process with SIGABRT.
        table = _with_later_columns(file.read(columns=written, use_threads=False), chosen)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise_machine_fault(error)
        raise ValueError(f"{path} cannot be read: {str(error).strip()}; index the pictures again") from None
    if not table.schema.equals(chosen) or len(table) != segment.num_rows:
        raise ValueError(f"{path} holds other rows or columns than its manifest says; index the pictures again")
    return table


def _with_later_columns(table: pa.Table, chosen: pa.Schema) -> pa.Table:
    """Return a table with all columns, where it was written before there were some, which are empty then."""
    pa, _ = arrow()
    for name in _LATER:
        if name in chosen.names and name not in table.column_names:
            table = table.append_column(chosen.field(name), pa.nulls(len(table), chosen.field(name).type))
    return table.select([name for name in chosen.names if name in table.column_names])


def vectors_of(table: pa.Table, dim: int) -> NDArray[np.float16]:
    """Return the embeddings of a table.

    Shape:
        `(rows, dim)`, float16.
    """
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in table[EMBEDDING].chunks]
    return np.concatenate(parts) if parts else np.empty((0, dim), np.float16)


def _vector_type(dim: int) -> pa.DataType:
    pa, _ = arrow()
    return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)


def _array(vectors: NDArray[np.float16]) -> pa.Array:
    pa, _ = arrow()
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=_vector_type(vectors.shape[1]))
