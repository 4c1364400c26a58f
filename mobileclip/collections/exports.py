"""Exports an index as a Parquet file of rows, or as a file of images and embeddings for a static web page."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobileclip import storage
from mobileclip.collections.images import small_images, webp
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.snapshot import Match, Snapshot, match_of
from mobileclip.collections.store import COLUMNS, Row, Store
from mobileclip.extras import needed
from mobileclip.inference import ImageTextModel
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.serialization import from_json, to_json
from mobileclip.terminal import console

if TYPE_CHECKING:
    import pyarrow as pa


SUFFIX = ".parquet"
"""Suffix of a file with the rows of an index."""

_EMBEDDING, _ABOUT = "embedding", "mobileclip"
_TYPES = dict.fromkeys(COLUMNS, "string") | {
    **dict.fromkeys(("id", "size", "mtime_ns"), "int64"),
    **dict.fromkeys(("width", "height"), "int32"),
    **dict.fromkeys(("latitude", "longitude", "time"), "float64"),
}
_BLOCK = 16_384


def arrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module.

    Raises:
        ImportError: if pyarrow is not installed.
    """
    with needed("rows as Parquet", "collections"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    return pa, pq


def write_rows(path: Path, rows: Iterable[Row], about: IndexMetadata, *, overwrite: bool = False) -> int:
    """Write rows to a Parquet file, atomically, and return the number of rows.

    Args:
        path: path of the file, `*.parquet`.
        rows: rows of an index; the file stores zeros in place of a missing embedding.
        about: metadata of the index.
        overwrite: whether to replace an existing file.

    Raises:
        ValueError: if the suffix is not `.parquet`.
        OSError: if the file exists and `overwrite` is false, or the file cannot be written.
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


def open_rows(file: Path) -> Store:
    """Open the output of `write_rows` as a temporary, read-only index.

    Raises:
        ValueError: if the file does not contain rows of an index.
        OSError: if the file cannot be read.
    """
    pa, pq = arrow()
    try:
        about = from_json(pq.read_metadata(file).metadata[_ABOUT.encode()].decode(), IndexMetadata)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} does not contain rows of an index ({error!r}); expected a file written by Collection.export"
        ) from None
    folder = Path(tempfile.mkdtemp(prefix="mobileclip-"))
    store = Store.create(folder, about)
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    with store.writing():
        store.append(_read_rows(file, about.dim))
    store.exported = file
    return store


def _read_rows(path: Path, dim: int) -> Iterator[Row]:
    pa, pq = arrow()
    try:
        file = pq.ParquetFile(path)
        # An Arrow thread that frees memory during interpreter shutdown would abort the process with SIGABRT.
        for batch in file.iter_batches(_BLOCK, columns=[*COLUMNS, _EMBEDDING], use_threads=False):
            batch.validate(full=True)
            yield from _rows_of(batch, dim)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise_machine_fault(error)
        raise ValueError(
            f"{path} cannot be read: {str(error).strip()}; delete it, and export the index again: `mobileclip merge`"
        ) from None


def _rows_of(batch: pa.RecordBatch, dim: int) -> Iterator[Row]:
    vectors = batch[_EMBEDDING].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float16)
    if len(vectors) != len(batch):
        raise ValueError(f"the embeddings do not have {dim} dimensions")
    for vector, row in zip(vectors, batch.select(COLUMNS).to_pylist(), strict=True):
        yield Row(embedding=vector if row["problem"] is None else None, **{**row, "id": None})


WEB_SUFFIX = ".safetensors"
"""Suffix of a file for the web page of `examples/web`."""

PROBES = ("a photo of a dog", "a street at night", "two people on a beach", "a diagram with text")
"""Texts whose embeddings the web file stores, so that a page can detect a different text tower."""

_FACTS = ("part", "size", "width", "height", "camera", "taken", "time")
_FORMAT = "mobileclip images 1"
_SIDE = 320
_QUALITY = 70


def write_web_file(
    path: Path,
    snapshot: Snapshot,
    clip: ImageTextModel,
    *,
    overwrite: bool = False,
    show_progress: bool = True,
) -> int:
    """Write the embeddings and small copies of all existing images for a web page; return the number of images.

    The safetensors file contains `embedding`, float16; `names` and `facts`, JSON lists; `thumbnails`, WebP files that
    end at the offsets `ends`; and `probes`, the embeddings of `PROBES`. Names are paths relative to the images' common
    folder. `facts` has every column that a condition can use, except the GPS position and the SHA-256. Unreadable
    images have empty thumbnails. The function skips missing images.

    Args:
        path: path of the file, `*.safetensors`.
        snapshot: snapshot of the collection.
        clip: model of the index.
        overwrite: whether to replace an existing file.
        show_progress: whether to show progress.

    Raises:
        ValueError: if there are no images, all files are missing, or the suffix is not `.safetensors`.
        OSError: if the file exists and `overwrite` is false, or the file cannot be written.
    """
    from safetensors.numpy import save

    storage.require_output(path, overwrite=overwrite, suffixes=(WEB_SUFFIX,))
    indices, rows = snapshot.shown()
    matches = [match_of(row, 1.0) for row in rows]
    thumbnails, ends = bytearray(), []
    with Progress(
        "making small copies", total=len(matches), unit="images", console=console(shown=show_progress)
    ) as bar:
        for image in small_images(matches, _SIDE):
            thumbnails += b"" if image is None else webp(image, _QUALITY)
            ends.append(len(thumbnails))
            bar.advance()
    # The location of the files on this machine stays private.
    folder = os.path.commonpath([os.path.dirname(match.path) for match in matches])  # noqa: PTH120 - texts, of any number
    names = json.dumps([_short(match.name, folder) for match in matches])
    facts = json.dumps([_facts(match, folder) for match in matches])
    content = save(
        {
            "embedding": snapshot.vectors[indices],
            "probes": clip.encode_text(list(PROBES)).numpy().astype(np.float32),
            "names": np.frombuffer(names.encode(), np.uint8),
            "facts": np.frombuffer(facts.encode(), np.uint8),
            "ends": np.array(ends, np.int64),
            "thumbnails": np.frombuffer(bytes(thumbnails), np.uint8),
        },
        metadata={"format": _FORMAT, "probes": json.dumps(PROBES)},
    )
    with storage.atomic_write(path) as file:
        file.write(content)
    return len(matches)


def _short(path: str, folder: str) -> str:
    return storage.printable(os.path.relpath(path, folder), limit=4096)


def _facts(match: Match, folder: str) -> dict[str, Any]:
    known = {name: value for name, value in match.to_dict().items() if name in _FACTS}
    return {**known, "path": _short(match.path, folder)}
