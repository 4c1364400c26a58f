"""The files of a join's index, one for each shard: where its images are, or the names of its samples.

A file is a line of JSON and the records behind it. It appears when it is complete, it is checked when it is read, and
one that is damaged counts as missing: its shard is read again.
"""

from __future__ import annotations

import os
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from mobileclip.data.buckets import Records
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import atomic_path
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

_MAGIC = b"mobileclip join 1\n"
_MOST_HEADER_BYTES = 2**16
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
        crc32: of the records.
    """

    shard: str
    by: str
    fingerprint: str
    hashed: bool = False
    num_records: int = 0
    num_without: int = 0
    problem: str | None = None
    crc32: int = 0


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
    return folder / digest[:2] / f"{digest[2:]}.{kind}"


def write_records(folder: Path, kind: str, about: AboutShard, records: Records) -> AboutShard:
    """Write the records of a shard, and return what is known of it with their number and checksum.

    Args:
        folder: of the index.
        kind: of records, `places` or `names`.
        about: the shard.
        records: of it.
    """
    path = records_path(folder, kind, about.by, about.shard)
    content = records.tobytes()
    problem = None if about.problem is None else about.problem[:_MOST_PROBLEM]
    about = attrs.evolve(about, num_records=len(records), crc32=zlib.crc32(content), problem=problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(_MAGIC + to_json(about).encode(errors="backslashreplace") + b"\n")
        stream.write(content)
    return about


def read_about(folder: Path, kind: str, by: str, shard: str) -> AboutShard | None:
    """Return what is known of a shard; None where there is no file, or another one.

    Args:
        folder: of the index.
        kind: of records, `places` or `names`.
        by: what they are called by.
        shard: path or URL.
    """
    found = _read_header(records_path(folder, kind, by, shard), KINDS[kind])
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
    path = records_path(folder, kind, about.by, about.shard)
    found = _read_header(path, KINDS[kind])
    if found is not None and found[0] == about:
        records = np.fromfile(path, KINDS[kind], offset=found[1])
        is_known = kind == NAMES or bool((records["extension"] < len(IMAGE_EXTENSIONS)).all())
        if is_known and zlib.crc32(records.view("u1").data) == about.crc32:
            return records
        path.unlink()
    raise ValueError(f"{path} is gone or damaged; run this again, and its shard is read anew")


def _read_header(path: Path, dtype: np.dtype[Any]) -> tuple[AboutShard, int] | None:
    try:
        with path.open("rb") as stream:
            if stream.readline(len(_MAGIC)) != _MAGIC:
                return None
            line = stream.readline(_MOST_HEADER_BYTES)
            num_bytes, size = stream.tell(), os.fstat(stream.fileno()).st_size
        about = from_json(line.decode(), AboutShard)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        return None
    return (about, num_bytes) if size == num_bytes + about.num_records * dtype.itemsize else None
