"""Grouping of more records than fit into memory: records are split into bucket files, each small enough to load.

Buckets make it possible to sort or compare a billion keys: `Buckets` writes and reads records sequentially, and keeps
records in memory if all of them fit.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileclip.storage import exclusive
from mobileclip.storage.atomic import PREFIX

Records = npt.NDArray[Any]
"""A structured array or an array of numbers."""

# Size of the records that are buffered before they are written; large, so that each write to a bucket is long.
_HELD_BYTES = 2**25
_SCRATCH = ".scratch"


class Buckets(ExitStack):
    """Records grouped into buckets on disk, one file per bucket, so that each bucket fits into memory.

    Leaving the `with` block or calling `close` removes the files.

    Args:
        dtype: dtype of a record.
        num_buckets: number of buckets, at least 1.
        folder: folder of the bucket files, created if missing; None uses the system's temporary directory.
        held_bytes: maximum size of the records buffered in memory, in bytes; `add` writes further records to disk.
    """

    def __init__(
        self, dtype: npt.DTypeLike, num_buckets: int, *, folder: Path | None = None, held_bytes: int = _HELD_BYTES
    ) -> None:
        super().__init__()
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.num_buckets = num_buckets
        self._folder = folder
        self._most_held = max(1, held_bytes // self.dtype.itemsize)
        self._scratch: Path | None = None
        self._held: list[tuple[npt.NDArray[np.int32], Records]] = []
        self._num_held = 0
        self.callback(self._held.clear)

    def add(self, records: Records, bucket: npt.ArrayLike) -> None:
        """Add records.

        Args:
            records: records to add.
            bucket: bucket index of each record, from 0 to `num_buckets - 1`, or a single index for all records.
        """
        places = np.broadcast_to(np.asarray(bucket, np.int32), len(records))
        self._held.append((places, np.asarray(records, self.dtype)))
        self._num_held += len(records)
        if self._num_held > self._most_held:
            self._write()

    def __iter__(self) -> Iterator[Records]:
        """Yield one array per bucket, which may be empty; the records are in the order of the `add` calls."""
        if self._scratch is not None:
            self._write()
            for number in range(self.num_buckets):
                path = self._scratch / str(number)
                yield np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)
            return
        records, starts = self._by_bucket()
        for number in range(self.num_buckets):
            yield records[starts[number] : starts[number + 1]]

    def drain(self) -> Iterator[Records]:
        """Yield one array per bucket, and remove each bucket's file after reading; call this method only once."""
        for number, records in enumerate(self):
            if self._scratch is not None:
                (self._scratch / str(number)).unlink(missing_ok=True)
            yield records

    def _by_bucket(self) -> tuple[Records, npt.NDArray[np.int64]]:
        """Return the buffered records sorted by bucket, and the start index of each bucket."""
        if not self._held:
            return np.empty(0, self.dtype), np.zeros(self.num_buckets + 1, np.int64)
        places = np.concatenate([bucket for bucket, _ in self._held])
        order = np.argsort(places, kind="stable")
        records = np.concatenate([some for _, some in self._held])[order]
        return records, np.searchsorted(places[order], np.arange(self.num_buckets + 1))

    def _write(self) -> None:
        if self._scratch is None:
            if self._folder is None:
                self._scratch = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="mobileclip-")))
            else:
                self._scratch = self.enter_context(scratch_folder(self._folder))
        records, starts = self._by_bucket()
        for number in np.flatnonzero(np.diff(starts)):
            # Open the file for each write: some systems do not allow as many open files as there are buckets.
            with (self._scratch / str(number)).open("ab") as stream:
                records[starts[number] : starts[number + 1]].tofile(stream)
        self._held.clear()
        self._num_held = 0


def leading_bits(numbers: npt.NDArray[np.uint64], num_buckets: int) -> npt.NDArray[np.int64]:
    """Return the leading bits of each number as its bucket index, so that successive buckets hold ascending numbers.

    Args:
        numbers: 64-bit numbers that are evenly distributed, such as hashes.
        num_buckets: number of buckets, a power of two.
    """
    bits = num_buckets.bit_length() - 1
    assert num_buckets == 1 << bits, "a power of two"
    return (numbers >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(numbers), np.int64)


def runs(ordered: Records) -> list[tuple[int, int, int]]:
    """Return the distinct values of sorted numbers, each with the start and the exclusive end of its run.

    Args:
        ordered: integers in ascending order.
    """
    values, starts = np.unique(ordered, return_index=True)
    ends = [*starts[1:].tolist(), len(ordered)][: len(starts)]
    return list(zip(values.tolist(), starts.tolist(), ends, strict=True))


def num_buckets_for(num_records: int, itemsize: int, *, bucket_bytes: int = 2**26) -> int:
    """Return the number of buckets (a power of two) that gives each bucket at most `bucket_bytes` on average.

    Args:
        num_records: expected number of records.
        itemsize: size of one record, in bytes.
        bucket_bytes: upper limit on the average size of a bucket, in bytes; several buckets should fit into memory.
    """
    return 1 << max(0, (num_records * itemsize // bucket_bytes).bit_length())


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder and remove it when the block ends; the next call removes folders of killed processes.

    Args:
        parent: parent folder, created if missing.

    Raises:
        OSError: if `parent` is not writable.
    """
    for left in parent.glob(f"{PREFIX}*{_SCRATCH}"):
        # A process that still uses the folder holds its lock.
        with suppress(ValueError, OSError), exclusive(left):
            shutil.rmtree(left)
    folder = parent / f"{PREFIX}{secrets.token_hex(8)}{_SCRATCH}"
    with exclusive(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
