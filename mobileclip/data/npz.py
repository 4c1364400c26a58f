"""Arrays in an npz, inflated no further than the row that is wanted."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import numpy as np

from mobileclip.data.inflate import InflateStream
from mobileclip.data.skips import BadSampleError
from mobileclip.data.zip_directory import STORED, ZipEntry, zip_directory

_HEADER_BYTES = 128
_HEADER = re.compile(
    rb"\{'descr': '([<|=]?[fiu]\d)', 'fortran_order': False, 'shape': \((\d+), ?(\d+)\), \} *\n", re.ASCII
)
# No embedding comes near; what a damaged stream inflates to exceeds it at once.
_LARGEST = 2.0**64


class NpzRows:
    """Embeddings in an npz that numpy wrote, read row by row.

    The checksum of an array is compared once all of it was read. Before that, a damaged row shows only by what cannot
    be inflated, or by numbers that no embedding has.

    Args:
        data: the npz.

    Raises:
        ValueError: if it is none, or holds something else than 2-d arrays of numbers in the order of C.
    """

    def __init__(self, data: bytes) -> None:
        entries = zip_directory(data)
        self._arrays = {name.removesuffix(".npy"): _Array(data, entry) for name, entry in entries.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name: (number of rows, dim)."""
        return {name: array.shape for name, array in self._arrays.items()}

    def row(self, name: str, index: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if it is damaged.
        """
        try:
            row = self._arrays[name].row(index)
        except (ValueError, zlib.error) as error:
            raise BadSampleError("bad_embedding", f"npz: {name}: {error}") from None
        largest = float(np.abs(row).max())
        if not largest < np.inf:
            raise BadSampleError("not_finite", f"row {index} of {name} holds NaN or infinity")
        if largest > _LARGEST and not self._arrays[name].is_verified:
            raise BadSampleError("bad_embedding", f"npz: row {index} of {name} holds {largest:.0e}: it is damaged")
        return row


class _Array:
    """One array, inflated as far as it was asked for."""

    def __init__(self, data: bytes, entry: ZipEntry) -> None:
        self._entry = entry
        self._stored = memoryview(data)[entry.start : entry.start + entry.stored_size]
        self._stream = InflateStream(self._stored, -15)
        self._content = bytearray()
        self.is_verified = False
        self._read(min(_HEADER_BYTES, entry.size))
        if self._content[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError("it holds something else than arrays of numpy's first format")
        self._first = 10 + int.from_bytes(self._content[8:10], "little")
        match = _HEADER.fullmatch(self._content, 10, self._first)
        if match is None:
            raise ValueError("it holds something else than 2-d arrays of numbers in the order of C")
        self._dtype = np.dtype(match[1].decode())
        self.shape = (int(match[2]), int(match[3]))
        if self._first + self.shape[0] * self.shape[1] * self._dtype.itemsize != entry.size:
            raise ValueError("an array has another size than its header says")

    def row(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        count, dim = self.shape
        if not 0 <= index < count:
            raise IndexError(f"there are {count} rows, there is no row {index}")
        start = self._first + index * dim * self._dtype.itemsize
        self._read(start + dim * self._dtype.itemsize)
        return np.frombuffer(self._content, self._dtype, dim, start).astype(np.float32)

    def _read(self, size: int) -> None:
        """Have the first `size` bytes of the content at hand."""
        if size <= len(self._content):
            return
        if self._entry.method == STORED:
            self._content = bytearray(self._stored)
        else:
            self._content += self._stream.read(size - len(self._content))
        if len(self._content) < size:
            raise ValueError("an array is cut off")
        if len(self._content) == self._entry.size:
            if zlib.crc32(self._content) != self._entry.checksum:
                raise ValueError("an array is damaged: its checksum differs")
            self.is_verified = True
