"""Arrays in an npz, inflated no further than the row that is wanted."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping

import attrs
import numpy as np

from mobileclip.data.skips import BadSampleError

_END = struct.Struct("<4sHHHHIIH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1
_HEADER_BYTES = 128
_HEADER = re.compile(
    rb"\{'descr': '([<|=]?[fiu]\d)', 'fortran_order': False, 'shape': \((\d+), ?(\d+)\), \} *\n", re.ASCII
)
# No embedding comes near; what a damaged stream inflates to exceeds it at once.
_LARGEST = 2.0**64


@attrs.frozen
class _Entry:
    start: int
    stored_size: int
    size: int
    checksum: int
    method: int


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
        self._arrays = {name: _Array(data, entry) for name, entry in _directory(data).items()}

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

    def __init__(self, data: bytes, entry: _Entry) -> None:
        self._entry = entry
        self._stored = data[entry.start : entry.start + entry.stored_size]
        self._stream = zlib.decompressobj(-15)
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
        if self._entry.method == _STORED:
            self._content, self._stored = bytearray(self._stored), b""
        else:
            self._content += self._stream.decompress(self._stored, size - len(self._content))
            self._stored = self._stream.unconsumed_tail
        if len(self._content) < size:
            raise ValueError("an array is cut off")
        if len(self._content) == self._entry.size:
            if zlib.crc32(self._content) != self._entry.checksum:
                raise ValueError("an array is damaged: its checksum differs")
            self.is_verified = True


def _directory(data: bytes) -> dict[str, _Entry]:
    """Return the arrays by name.

    Raises:
        ValueError: if it is no zip file of the simple kind that numpy writes.
    """
    if len(data) < _END.size:
        raise ValueError("it is no zip file")
    signature, *_, count, length, position, comment = _END.unpack(data[-_END.size :])
    if signature != b"PK\x05\x06" or comment or position + length + _END.size != len(data):
        raise ValueError("it is no zip file, or has more than numpy writes")
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        fields = _CENTRAL.unpack_from(data, position)
        method, checksum, stored_size, size = fields[4], *fields[7:10]
        name_length, local = fields[10], fields[16]
        name = data[position + _CENTRAL.size : position + _CENTRAL.size + name_length]
        if fields[0] != b"PK\x01\x02" or fields[3] & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            raise ValueError("it is no zip file of the kind that numpy writes")
        entries[name.decode().removesuffix(".npy")] = _Entry(_start(data, local), stored_size, size, checksum, method)
        position += _CENTRAL.size + sum(fields[10:13])
    return entries


def _start(data: bytes, local: int) -> int:
    fields = _LOCAL.unpack_from(data, local)
    if fields[0] != b"PK\x03\x04":
        raise ValueError("its directory points elsewhere than to an array")
    return int(local + _LOCAL.size + fields[9] + fields[10])
