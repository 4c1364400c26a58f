"""The tables of a join's index, one for each shard: where its images are, or the names of its samples.

A table appears when it is complete; one that is damaged counts as missing, and its shard is read again.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import attrs
import numpy as np

from mobileclip.data.buckets import Records
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.datasets.sources.tables import read_noted, write_noted
from mobileclip.strict import strict

NAME = np.dtype([("high", "u8"), ("low", "u8")])
"""The 128-bit hash of what a sample is called; zeros where it asks for no image."""

PLACE = np.dtype(
    [
        *NAME.descr,
        ("start", "u8"),
        ("size", "u4"),
        ("text_start", "u8"),
        ("text_size", "u4"),
        ("json_start", "u8"),
        ("json_size", "u4"),
        ("extension", "u1"),
        ("sha256", "u8"),
    ]
)
"""Where an image is: the hash of its name, where it begins in its shard and its bytes, likewise its caption and its
JSON (zeros where there is none), the number of its extension, and the first 8 bytes of its SHA-256."""

PLACES, NAMES = "places", "names"
KINDS = {PLACES: PLACE, NAMES: NAME}
"""Kinds of records by the suffix of their files."""

_MOST_PROBLEM = 1000


@attrs.frozen(kw_only=True, field_transformer=strict)
class AboutShard:
    """Metadata of an indexed shard's records.

    Args:
        shard: its path or URL.
        by: what its records are called by.
        fingerprint: of the shard when it was read; empty if it has to be read again.
        hashed: whether its images were read and hashed.
        num_records: of images, or of samples.
        num_without: samples without the field that they are called by.
        problem: what ended it before its time.
    """

    shard: str
    by: str
    fingerprint: str
    hashed: bool = False
    num_records: int = 0
    num_without: int = 0
    problem: str | None = None


def name_hash(name: str) -> tuple[int, int]:
    """Return the 128-bit hash of what a sample or an image is called, as two numbers."""
    digest = blake2b(name.encode(errors="surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def records_path(folder: Path, kind: str, by: str, shard: str) -> Path:
    """Return the file with the records of a shard.

    Args:
        folder: of the index.
        kind: suffix of its name.
        by: what the records are called by.
        shard: path or URL.
    """
    digest = blake2b(f"{by}\n{shard}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return folder / digest[:2] / f"{digest[2:]}.{kind}.parquet"


def write_records(folder: Path, kind: str, about: AboutShard, records: Records) -> AboutShard:
    """Write the records of a shard as a table, and return what is known of it with their number.

    Args:
        folder: of the index.
        kind: of records, `places` or `names`.
        about: the shard.
        records: of it.
    """
    import pyarrow as pa

    problem = None if about.problem is None else about.problem[:_MOST_PROBLEM]
    about = attrs.evolve(about, num_records=len(records), problem=problem)
    names = KINDS[kind].names or ()
    table = pa.Table.from_arrays([pa.array(np.ascontiguousarray(records[name])) for name in names], list(names))
    write_noted(str(records_path(folder, kind, about.by, about.shard)), table, about)
    return about


def read_about(folder: Path, kind: str, by: str, shard: str) -> AboutShard | None:
    """Return what is known of a shard; None where there is no file, or another one.

    Args:
        folder: of the index.
        kind: of records, `places` or `names`.
        by: what they are called by.
        shard: path or URL.
    """
    found = read_noted(str(records_path(folder, kind, by, shard)), AboutShard, rows=False)
    return found[0] if found is not None and (found[0].shard, found[0].by) == (shard, by) else None


def read_records(folder: Path, kind: str, about: AboutShard) -> Records:
    """Return the records of a shard.

    Args:
        folder: of the index.
        kind: of records, `places` or `names`.
        about: what `read_about` said.

    Raises:
        ValueError: if they are gone or damaged; the file is removed, and its shard read again by the next run.
    """
    path, dtype = records_path(folder, kind, about.by, about.shard), KINDS[kind]
    found = read_noted(str(path), AboutShard)
    if found is not None and found[0] == about and found[1] is not None:
        table = found[1]
        columns = {name: table[name].to_numpy() for name in dtype.names or () if name in table.column_names}
        is_whole = {name: column.dtype for name, column in columns.items()} == {
            name: dtype[name] for name in dtype.names or ()
        }
        if is_whole and len(table) == about.num_records:
            records = np.empty(len(table), dtype)
            for name, column in columns.items():
                records[name] = column
            if kind == NAMES or bool((records["extension"] < len(IMAGE_EXTENSIONS)).all()):
                return records
    path.unlink(missing_ok=True)
    raise ValueError(f"{path} is gone or damaged; run this again, and its shard is read anew")
