"""What an index holds at one moment, in memory: the columns as a table, the embeddings as one array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.store.presence import Presence
from mobileclip.collections.store.segments import COLUMNS, arrow, schema, vectors_of
from mobileclip.collections.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """The pictures of an index.

    Shape:
        vectors: `(pictures, dim)`, float16; ids: `(pictures,)`, int64, rising.

    Args:
        table: a row for each picture, without its embedding.
        vectors: of unit length.
        ids: of the rows.
        num_unreadable: files that are known and cannot be read.
    """

    table: pa.Table
    vectors: NDArray[np.float16]
    ids: NDArray[np.int64]
    num_unreadable: int

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.ids)

    def place(self, number: int) -> int:
        """Return where a picture is, by its id.

        Raises:
            ValueError: if there is none of that id.
        """
        place = int(np.searchsorted(self.ids, number))
        if place == len(self.ids) or self.ids[place] != number:
            raise ValueError(f"the index has no picture of the id {number}; search again, it may have been removed")
        return place

    def is_shown(self, places: NDArray[np.int64], there: Presence) -> NDArray[np.bool_]:
        """Return which of some pictures are shown: their files are where the index has them.

        Rows of others are kept, as their disk may come back.

        Args:
            places: of the pictures.
            there: the files that are there.
        """
        paths = self.table["path"].take(places).to_pylist()
        return np.fromiter((path in there for path in paths), bool, len(paths))

    def shown(self) -> NDArray[np.int64]:
        """Return the places of all pictures that are shown.

        Raises:
            ValueError: if there are no pictures, or none is where it was.
        """
        if not len(self):
            raise ValueError("there are no pictures in the index; add some with mobileclip index")
        places = np.flatnonzero(self.is_shown(np.arange(len(self)), Presence()))
        if not len(places):
            raise ValueError(
                "the pictures of the index are not where they were; bring it up to date with mobileclip index"
            )
        return places

    def row(self, place: int) -> dict[str, Any]:
        """Return what is known of a picture, by column; None where something is not."""
        values: dict[str, Any] = self.table.slice(place, 1).to_pylist()[0]
        return values


def take_snapshot(store: Store) -> Snapshot:
    """Return what an index holds now; what is written later does not change it.

    Raises:
        ValueError: if the index is damaged.
        OSError: if it cannot be read.
    """
    pa, _ = arrow()
    dim = store.manifest.dim
    segments = store.read()
    kept = [_pictures(table, segment.removed) for segment, table in segments]
    vectors = np.empty((sum(map(int, map(np.count_nonzero, kept))), dim), np.float16)
    tables, start, num_unreadable = [], 0, 0
    for number, (segment, table) in enumerate(segments):
        mask = kept[number]
        end = start + int(mask.sum())
        vectors[start:end] = vectors_of(table, dim)[mask]
        tables.append(table.select(COLUMNS).filter(pa.array(mask)))
        num_unreadable += len(table) - len(segment.removed) - int(mask.sum())
        # The embeddings of a segment are let go of before those of the next are copied.
        segments[number] = (segment, table.select(COLUMNS))
        start = end
    columns = pa.schema([field for field in schema(dim) if field.name in COLUMNS])
    whole = pa.concat_tables(tables).combine_chunks() if tables else columns.empty_table()
    ids = whole["id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        whole, vectors, ids = whole.take(pa.array(order)), vectors[order], ids[order]
    return Snapshot(table=whole, vectors=vectors, ids=ids, num_unreadable=num_unreadable)


def _pictures(table: pa.Table, removed: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which rows are pictures that have an embedding and were not removed."""
    mask: NDArray[np.bool_] = table["problem"].is_null().to_numpy().copy()
    mask[list(removed)] = False
    return mask
