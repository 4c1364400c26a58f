"""Rows in a folder: written segment by segment by one job at a time, while others read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.collections.store.manifest import (
    MANIFEST,
    FinishedFile,
    Manifest,
    Segment,
    is_segment_name,
    read_manifest,
    write_manifest,
)
from mobileclip.collections.store.segments import Row, arrow, numbered, read_segment, table_of, write_segment

if TYPE_CHECKING:
    import pyarrow as pa

# A segment of fewer rows is merged with others like it, once there are so many of them.
_FEW_ROWS = 10_000
_MOST_SMALL = 16
# A segment is written anew without the rows that were removed when they are so large a part of it.
_MOST_REMOVED = 0.25
# Rows of merged segments; of 512 numbers each, they take 100 MB.
_MERGED_ROWS = 100_000
# How often a reader begins again since a segment was merged meanwhile.
_ATTEMPTS = 10

Place = tuple[str, int]
"""Where a row is: the name of its segment, and its place in it."""


@attrs.define(eq=False)
class Store:
    """The rows of an index.

    Args:
        folder: of the index.
        manifest: as it was last read or written.
    """

    folder: Path
    manifest: Manifest
    _is_writing: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Return the index in a folder.

        Raises:
            FileNotFoundError: if the folder is no index.
            ValueError: if it is damaged.
        """
        return cls(folder, read_manifest(folder))

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> Store:
        """Return a new, empty index.

        Raises:
            FileExistsError: if the folder holds something.
            OSError: if nothing can be written there.
        """
        arrow()
        if folder.exists() and storage.holds_anything(folder):
            raise FileExistsError(f"{folder} holds something already; open it, or choose another folder")
        with storage.exclusive(folder):
            write_manifest(folder, manifest)
        return cls(folder, manifest)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the index while rows are written; nobody else can.

        Raises:
            ValueError: if another job is writing.
        """
        with storage.exclusive(self.folder):
            self.manifest = read_manifest(self.folder)
            self._sweep()
            self._is_writing = True
            try:
                yield
            finally:
                self._is_writing = False

    def read(self, columns: Sequence[str] | None = None) -> list[tuple[Segment, pa.Table]]:
        """Return the rows of every segment, as they are now: what is written later is not seen.

        Args:
            columns: that are read; all by default.

        Raises:
            ValueError: if the index is damaged.
            OSError: if it is merged faster than it can be read, or cannot be read.
        """
        for _ in range(_ATTEMPTS):
            if (tables := self._read_all(columns)) is not None:
                return tables
            newest = read_manifest(self.folder)
            if newest.segments == self.manifest.segments:
                raise ValueError(f"{self.folder} is damaged: a segment is gone; index the pictures again")
            self.manifest = newest
        raise OSError(f"{self.folder} is written to faster than it can be read; wait until mobileclip index is done")

    def _read_all(self, columns: Sequence[str] | None) -> list[tuple[Segment, pa.Table]] | None:
        """Return the rows of every segment; None where one is gone, as merged ones are."""
        segments, dim = self.manifest.segments, self.manifest.dim
        try:
            return [(segment, read_segment(self.folder, segment, dim, columns)) for segment in segments]
        except FileNotFoundError:
            return None

    def values(self, columns: Sequence[str]) -> Iterator[tuple[Place, tuple[Any, ...]]]:
        """Yield where each row is, but for those that were removed, with its values of some columns.

        Args:
            columns: that are read.

        Raises:
            ValueError, OSError: see `read`.
        """
        for segment, table in self.read(columns):
            removed = set(segment.removed)
            rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
            for number, row in enumerate(rows):
                if number not in removed:
                    yield (segment.name, number), row

    def append(
        self,
        rows: Sequence[Row],
        *,
        tables: Sequence[pa.Table] = (),
        removed: Collection[Place] = (),
        finished: Collection[FinishedFile] = (),
    ) -> None:
        """Add rows and remove others, all of it or nothing.

        Args:
            rows: new ones, which go into a segment of their own.
            tables: of other new rows, which go into the same segment.
            removed: places of rows that are there.
            finished: files of many pictures that were read to their end.

        Raises:
            OSError: if nothing can be written.
        """
        assert self._is_writing, "an index is written to by whoever holds it"
        segments = list(_without(self.manifest.segments, removed))
        changed = attrs.evolve(self.manifest, finished=_renewed(self.manifest.finished, finished))
        if rows:
            tables = [*tables, table_of(rows, self.manifest.dim)]
        if tables:
            table = numbered(tables, self.manifest.next_id)
            segments.append(write_segment(self.folder, _name(self.manifest.next_segment), table))
            changed = attrs.evolve(
                changed,
                next_segment=self.manifest.next_segment + 1,
                next_id=self.manifest.next_id + len(table),
            )
        self._commit(attrs.evolve(changed, segments=tuple(segments)))

    def adopt(
        self,
        tables: Iterable[pa.Table],
        *,
        removed: Collection[Place],
        finished: Collection[FinishedFile],
        inputs: Iterable[str],
    ) -> None:
        """Add the rows of another index and remove others, all of it or nothing.

        Args:
            tables: the rows; each table goes into a segment of its own.
            removed: places of rows that are there.
            finished: files of many pictures that were read to their end.
            inputs: what the other index was made of.

        Raises:
            OSError: if nothing can be written.
        """
        assert self._is_writing, "an index is written to by whoever holds it"
        before = self.manifest
        segments = list(_without(before.segments, removed))
        number, next_id = before.next_segment, before.next_id
        for table in tables:
            # What is written here is swept away by the next job, unless the manifest names it in the end.
            segments.append(write_segment(self.folder, _name(number), numbered([table], next_id)))
            number, next_id = number + 1, next_id + len(table)
        self._commit(
            attrs.evolve(
                before,
                segments=tuple(segments),
                finished=_renewed(before.finished, finished),
                inputs=tuple(dict.fromkeys((*before.inputs, *inputs))),
                next_segment=number,
                next_id=next_id,
            )
        )

    def remember(self, inputs: Iterable[str]) -> None:
        """Keep what was indexed, beside what was before."""
        self._commit(attrs.evolve(self.manifest, inputs=tuple(dict.fromkeys((*self.manifest.inputs, *inputs)))))

    def forget(self, paths: Collection[str], *, inputs: Collection[str] = ()) -> None:
        """Drop files of many pictures from those that are finished, and inputs from those that were indexed."""
        before, dropped = self.manifest, set(paths)
        self._commit(
            attrs.evolve(
                before,
                finished=tuple(one for one in before.finished if one.path not in dropped),
                inputs=tuple(one for one in before.inputs if one not in inputs),
            )
        )

    def merge(self) -> None:
        """Write many small segments, and those with many removed rows, anew as few large ones."""
        assert self._is_writing, "an index is written to by whoever holds it"
        alive = {one.name: one.num_rows - len(one.removed) for one in self.manifest.segments}
        small = [one for one in self.manifest.segments if alive[one.name] < _FEW_ROWS]
        worn = [one for one in self.manifest.segments if len(one.removed) > _MOST_REMOVED * one.num_rows]
        chosen = {one.name for one in (*(small if len(small) > _MOST_SMALL else ()), *worn)}
        waiting = [one for one in self.manifest.segments if one.name in chosen]
        while waiting:
            group = [waiting.pop(0)]
            while waiting and sum(alive[one.name] for one in group) + alive[waiting[0].name] <= _MERGED_ROWS:
                group.append(waiting.pop(0))
            self._merge(group)

    def _merge(self, group: Sequence[Segment]) -> None:
        pa, _ = arrow()
        tables = [_alive(read_segment(self.folder, one, self.manifest.dim), one) for one in group]
        table = pa.concat_tables(tables).combine_chunks()
        names = {one.name for one in group}
        segments = [one for one in self.manifest.segments if one.name not in names]
        number = self.manifest.next_segment
        if len(table):
            segments.append(write_segment(self.folder, _name(number), table))
        self._commit(attrs.evolve(self.manifest, segments=tuple(segments), next_segment=number + 1))
        self._sweep()

    def _commit(self, manifest: Manifest) -> None:
        if manifest != self.manifest:
            write_manifest(self.folder, manifest)
            self.manifest = manifest

    def _sweep(self) -> None:
        """Remove segments that the manifest does not have: merged ones, and those of a job that was killed."""
        kept = {one.name for one in self.manifest.segments}
        for path in self.folder.glob("*.parquet"):
            if is_segment_name(path.name) and path.name not in kept:
                with suppress(OSError):
                    path.unlink()


def is_index(folder: Path) -> bool:
    """Return whether a folder is an index."""
    return (folder / MANIFEST).is_file()


def _name(number: int) -> str:
    return f"{number:08d}.parquet"


def _without(segments: Iterable[Segment], removed: Collection[Place]) -> Iterator[Segment]:
    places = defaultdict(set)
    for name, place in removed:
        places[name].add(place)
    for segment in segments:
        if segment.name in places:
            yield attrs.evolve(segment, removed=tuple(sorted(places[segment.name].union(segment.removed))))
        else:
            yield segment


def _renewed(before: Sequence[FinishedFile], new: Collection[FinishedFile]) -> tuple[FinishedFile, ...]:
    paths = {one.path for one in new}
    return (*(one for one in before if one.path not in paths), *new)


def _alive(table: pa.Table, segment: Segment) -> pa.Table:
    pa, _ = arrow()
    kept = np.ones(len(table), dtype=bool)
    kept[list(segment.removed)] = False
    return table.filter(pa.array(kept))
