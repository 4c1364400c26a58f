"""Writes the rows that readers find to the index every few seconds."""

from __future__ import annotations

import time
from itertools import chain

import attrs

from mobileclip.collections.indexing.known import KnownFiles
from mobileclip.collections.reading.findings import Findings
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.store.store import Store

MARK = "reading"
"""An empty file, which is there while a job that reads in its own process has written nothing down yet."""


class FindingsWriter:
    """Writes to an index what was found, and counts what it has written.

    Args:
        store: of the index, which the caller holds.
        known: what the index knows of files.
        options: after how many pictures and how many seconds something is written.
    """

    def __init__(self, store: Store, known: KnownFiles, options: IndexOptions) -> None:
        self._store, self._known, self._options = store, known, options
        self.mark = store.folder / MARK
        self.pending = Findings()
        self.written = Findings()
        self.num_known = 0
        self.recognised: set[str] = set()
        self.start_clock()

    def start_clock(self) -> None:
        """Count the seconds to the next writing from now on."""
        self._written = time.monotonic()

    def is_due(self, num_rows: int) -> bool:
        """Return whether it is time to write down so many rows."""
        is_late = time.monotonic() - self._written > self._options.segment_seconds
        return num_rows >= self._options.segment_rows or (is_late and num_rows > 0)

    def add(self, found: Findings) -> None:
        """Take what was found, and write it down if it is time.

        Raises:
            OSError: if it cannot be written.
        """
        self.pending.add(found)
        if self.is_due(self.pending.num_rows):
            self.flush()

    def flush(self) -> None:
        """Write down what was found.

        Raises:
            OSError: if it cannot be written.
        """
        found, self.pending = self.pending, Findings()
        self.recognised |= {one.sha256 for one in found.recognised}
        copies = self._known.copies(found.recognised)
        rows = [*found.rows, *copies]
        self.num_known += sum(row.problem is None for row in copies)
        renewed = chain(((row.path, row.part) for row in rows), found.gone)
        removed = [number for path, part in renewed for number in self._known.take_replaced(path, part)]
        self._store.append(rows, removed=removed, finished=found.finished)
        # Its counts and reasons are reported; rows have been written.
        self.written.add(attrs.evolve(found, rows=[], recognised=[], gone=[], finished=[]))
        self.mark.unlink(missing_ok=True)
        self.start_clock()
