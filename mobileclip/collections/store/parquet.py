"""Rows as Apache Parquet, which any reader of it opens, with the embeddings as lists of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobileclip import storage
from mobileclip.collections.store.about import About
from mobileclip.collections.store.rows import COLUMNS, Row
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json, to_json

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"

_EMBEDDING, _ABOUT = "embedding", "mobileclip"
_TYPES = dict.fromkeys(COLUMNS, "string") | {
    **dict.fromkeys(("id", "size", "mtime_ns"), "int64"),
    **dict.fromkeys(("width", "height"), "int32"),
    **dict.fromkeys(("latitude", "longitude", "time"), "float64"),
}
_BLOCK = 16_384


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and its reader of Parquet.

    Raises:
        ImportError: if it is not installed; the message has the command that installs it.
    """
    with needed("rows as Parquet", "collections"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    return pa, pq


def write_rows(path: Path, rows: Iterable[Row], about: About, *, overwrite: bool = False) -> int:
    """Write rows to a file, whole or not at all, and return how many there are.

    Args:
        path: `*.parquet`.
        rows: of an index; those without an embedding have zeros.
        about: what the index is of.
        overwrite: whether a file that is there is replaced.

    Raises:
        ValueError: if the name ends otherwise.
        OSError: if the file is there already, or cannot be written.
    """
    storage.require_output(path, overwrite=overwrite, suffixes=(SUFFIX,))
    pa, pq = arrow()
    fields = [pa.field(name, getattr(pa, kind)()) for name, kind in _TYPES.items()]
    vector = pa.list_(pa.float16(), about.dim)
    schema = pa.schema([*fields, pa.field(_EMBEDDING, vector)], metadata={_ABOUT: to_json(about)})
    rows, count, none = iter(rows), 0, np.zeros(about.dim, np.float16)
    with storage.atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while block := list(islice(rows, _BLOCK)):
            columns = [pa.array([getattr(row, name) for row in block], _TYPES[name]) for name in _TYPES]
            vectors = np.stack([none if row.embedding is None else row.embedding for row in block]).astype(np.float16)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=vector))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(block)
    return count


def read_about(path: Path) -> About:
    """Return what the rows of a file are of.

    Raises:
        ValueError: if no index was written there.
        OSError: if it cannot be read.
    """
    pa, pq = arrow()
    try:
        return from_json(pq.read_metadata(path).metadata[_ABOUT.encode()].decode(), About)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} holds no rows of an index ({error!r}); give one that Collection.export wrote"
        ) from None


def read_rows(source: Any, dim: int, name: str) -> Iterator[Row]:
    """Yield the rows of a file.

    Args:
        source: what Arrow reads from.
        dim: numbers in an embedding.
        name: of the file, for messages.

    Raises:
        ValueError: if there is no such file, or it holds other columns.
    """
    pa, pq = arrow()
    try:
        file = pq.ParquetFile(source)
        named = file.schema_arrow.names
        # Columns that were added later are empty in a file of before.
        columns = [one for one in COLUMNS if one in named]
        # A thread of Arrow that gives memory back while the interpreter ends would end the process with SIGABRT.
        for batch in file.iter_batches(_BLOCK, columns=[*columns, _EMBEDDING], use_threads=False):
            batch.validate(full=True)
            yield from _rows_of(batch, columns, dim)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise_machine_fault(error)
        raise ValueError(f"{name} cannot be read: {str(error).strip()}; index the pictures again") from None


def _rows_of(batch: pa.RecordBatch, columns: Sequence[str], dim: int) -> Iterator[Row]:
    vectors = batch[_EMBEDDING].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float16)
    if len(vectors) != len(batch):
        raise ValueError(f"its embeddings have other numbers than {dim}")
    values = zip(*(batch[one].to_pylist() for one in columns), strict=True)
    for vector, row in zip(vectors, values, strict=True):
        known = dict(zip(columns, row, strict=True))
        yield Row(embedding=vector if known["problem"] is None else None, **known)
