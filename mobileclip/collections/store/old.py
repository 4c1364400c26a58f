"""Indexes in other forms: of layout 1, a manifest and segments of Parquet, and rows that were exported."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs

from mobileclip import storage
from mobileclip.collections.store.about import About, FinishedFile, ModelSource
from mobileclip.collections.store.parquet import SUFFIX, arrow, read_about, read_rows
from mobileclip.collections.store.rows import Row
from mobileclip.serialization import from_json
from mobileclip.strict import strict

MANIFEST = "manifest.json"

_SEGMENT = r"[0-9]{8}\.parquet"
_MOST_BYTES = 2**34


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Segment:
    """A file of rows; those that were removed are given by their places."""

    name: str = attrs.field(validator=attrs.validators.matches_re(_SEGMENT))
    num_rows: int
    num_bytes: int
    sha256: str
    removed: tuple[int, ...] = ()


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Manifest:
    """What the manifest says."""

    layout: Literal[1] = 1
    weights_sha256: str
    spec: str
    version: str
    dim: int
    vector_type: Literal["float16"] = "float16"
    normalized: Literal[True] = True
    model: ModelSource = ModelSource()
    inputs: tuple[str, ...] = ()
    segments: tuple[_Segment, ...] = ()
    finished: tuple[FinishedFile, ...] = ()
    next_segment: int = 0
    next_id: int = 0


@attrs.frozen(kw_only=True, eq=False)
class Elsewhere:
    """An index in another form, whose rows are brought over before they are used.

    Args:
        about: what it is of.
        rows: yields its rows, in any order.
        inputs: what was indexed.
        finished: files of many pictures that were read to their end.
        next_id: of the next row.
    """

    about: About
    rows: Callable[[], Iterator[Row]]
    inputs: tuple[str, ...] = ()
    finished: tuple[FinishedFile, ...] = ()
    next_id: int = 0


def find_elsewhere(place: Path) -> Elsewhere | None:
    """Return the index of before in a folder, or in a Parquet file; None where there is none.

    Raises:
        ValueError: if it is damaged.
        OSError: if it cannot be read.
    """
    if place.suffix == SUFFIX and place.is_file():
        about = read_about(place)
        return Elsewhere(about=about, rows=lambda: read_rows(place, about.dim, str(place)))
    path = place / MANIFEST
    if not path.is_file():
        return None
    try:
        found = from_json(storage.read_bytes(path, limit=2**28).decode(), _Manifest)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete the folder, and index the pictures again") from None
    named = ("weights_sha256", "spec", "version", "dim", "model")
    return Elsewhere(
        about=About(**{name: getattr(found, name) for name in named}),
        rows=lambda: (row for one in found.segments for row in _rows_of(place / one.name, one, found.dim)),
        inputs=found.inputs,
        finished=found.finished,
        next_id=found.next_id,
    )


def _rows_of(path: Path, segment: _Segment, dim: int) -> Iterator[Row]:
    pa, _ = arrow()
    try:
        content: Any = storage.read_bytes(path, limit=min(segment.num_bytes, _MOST_BYTES))
    except FileNotFoundError:
        raise ValueError(f"{path} is gone; delete the folder, and index the pictures again") from None
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise ValueError(
            f"{path} is damaged: it is not what was written; delete the folder, and index the pictures again"
        )
    removed = set(segment.removed)
    for place, row in enumerate(read_rows(pa.BufferReader(content), dim, str(path))):
        if place not in removed:
            yield row


def is_old_file(name: str) -> bool:
    """Return whether a file is called like one of an old index."""
    return name == MANIFEST or re.fullmatch(_SEGMENT, name) is not None
