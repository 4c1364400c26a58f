"""More records than fit into memory, brought together by a number: shared out to files, each of which fits.

That is how a billion keys are sorted or compared: every record is written once and read once, both from start to end.
What fits into memory as a whole is never written.
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
"""A structured array, or one of numbers."""

# Of the records that are held until they are written: many at a time, so that each bucket gets a long piece.
_HELD_BYTES = 2**25
_SCRATCH = ".scratch"


class Buckets(ExitStack):
    """Records sorted into buckets on disk, one file each, so that each bucket fits into memory.

    What was written is removed when the block ends, or by `close`.

    Args:
        dtype: dtype of a record.
        num_buckets: how many there are, at least 1.
        folder: in which the files lie until this is closed; made where it is missing. None is the temporary directory.
        held_bytes: of records that are kept in memory before any is written.
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
            records: some.
            bucket: the number of each one's bucket, from 0; or one number for all.
        """
        places = np.broadcast_to(np.asarray(bucket, np.int32), len(records))
        self._held.append((places, np.asarray(records, self.dtype)))
        self._num_held += len(records)
        if self._num_held > self._most_held:
            self._write()

    def __iter__(self) -> Iterator[Records]:
        """Yield the records of every bucket in turn, in the order in which they were added; some may have none."""
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
        """Yield the records of every bucket in turn, once: each one's file is removed when it has been read."""
        for number, records in enumerate(self):
            if self._scratch is not None:
                (self._scratch / str(number)).unlink(missing_ok=True)
            yield records

    def _by_bucket(self) -> tuple[Records, npt.NDArray[np.int64]]:
        """Return the records that are held, sorted by their bucket, and where each bucket begins."""
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
            # Opened anew for each piece: as many open files as buckets are more than some systems allow.
            with (self._scratch / str(number)).open("ab") as stream:
                records[starts[number] : starts[number + 1]].tofile(stream)
        self._held.clear()
        self._num_held = 0


def leading_bits(numbers: npt.NDArray[np.uint64], num_buckets: int) -> npt.NDArray[np.int64]:
    """Return the bucket of each number, its leading bits: buckets in order hold ascending numbers.

    Args:
        numbers: of 64 bits, spread evenly, as hashes are.
        num_buckets: a power of two.
    """
    bits = num_buckets.bit_length() - 1
    assert num_buckets == 1 << bits, "a power of two"
    return (numbers >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(numbers), np.int64)


def runs(ordered: Records) -> list[tuple[int, int, int]]:
    """Return the distinct values of sorted numbers, with the start and end of each value's run.

    Args:
        ordered: ascending whole numbers.
    """
    values, starts = np.unique(ordered, return_index=True)
    ends = [*starts[1:].tolist(), len(ordered)][: len(starts)]
    return list(zip(values.tolist(), starts.tolist(), ends, strict=True))


def num_buckets_for(num_records: int, itemsize: int, *, bucket_bytes: int = 2**26) -> int:
    """Return the number of buckets, a power of two, that gives each at most `bucket_bytes` on average.

    Args:
        num_records: that are expected.
        itemsize: bytes of one.
        bucket_bytes: that fit into memory a few times over.
    """
    return 1 << max(0, (num_records * itemsize // bucket_bytes).bit_length())


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder, which is removed when the block ends, and by the next one if this process is killed.

    Args:
        parent: parent of it; made where it is missing.

    Raises:
        OSError: if nothing can be written there.
    """
    for left in parent.glob(f"{PREFIX}*{_SCRATCH}"):
        # Who still works in it holds its lock.
        with suppress(ValueError, OSError), exclusive(left):
            shutil.rmtree(left)
    folder = parent / f"{PREFIX}{secrets.token_hex(8)}{_SCRATCH}"
    with exclusive(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
