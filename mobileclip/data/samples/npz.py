"""Arrays in an npz, inflated no further than the row that is wanted."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.data.samples.inflate import InflateStream, TooLargeError
from mobileclip.data.samples.limits import DIRECTORY_BYTES
from mobileclip.data.samples.zips import Member, zip_members
from mobileclip.data.skips import BadSampleError

MAX_HEADER_BYTES = 1024
"""As many as the header of an array of numbers may take."""
_HEADER_BYTES = 128
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?(?:[iu][1248]|f[248]))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,10}(?:, ?[0-9]{1,10})*,?)?)\), \} *\n"
)
# No embedding comes near; what a damaged stream inflates to exceeds it at once.
_LARGEST = 2.0**64


class NpzRows:
    """Embeddings in an npz that numpy wrote, read row by row.

    The checksum of an array is compared once all of it was read. Before that, a damaged row shows only by what cannot
    be inflated, or by numbers that no embedding has.

    Args:
        data: the npz.
        limit: number of bytes that its arrays may take, inflated.

    Raises:
        TooLargeError: if they take more.
        ValueError: if it is none, or holds something else than arrays of numbers.
    """

    def __init__(self, data: bytes, *, limit: int) -> None:
        found = zip_members(io.BytesIO(data), len(data), directory_bytes=DIRECTORY_BYTES)
        num_bytes = sum(member.size for member in found.values())
        if num_bytes > limit:
            raise TooLargeError(f"it holds {num_bytes:,} bytes, more than the {limit:,} that it may")
        self._arrays = {name.removesuffix(".npy"): _Array(data, member) for name, member in found.items()}
        if len(self._arrays) < len(found):
            raise ValueError("two arrays have one name")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name; (number of rows, dim) where it has rows."""
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


@attrs.frozen
class NpyHeader:
    """The header of a `.npy` file: dtype, order and shape of its array.

    Args:
        first: place of the first number.
        dtype: of the numbers.
        order: `C`, row after row, or `F`, column after column.
        shape: of the array.
        num_bytes: that the whole file must have.
    """

    first: int
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    shape: tuple[int, ...]
    num_bytes: int


def read_npy_header(start: bytes | bytearray) -> NpyHeader:
    """Parse the header of a `.npy` file, and check it before anything is allocated.

    Args:
        start: the first `MAX_HEADER_BYTES` of the file, or all of them.

    Raises:
        ValueError: if it is no array of numbers in numpy's first format.
    """
    return _header(bytes(start[: 10 + int.from_bytes(start[8:10], "little")]))


@lru_cache(maxsize=1024)  # samples of a data set have one header, or few
def _header(header: bytes) -> NpyHeader:
    if header[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("it holds something else than arrays of numpy's first format")
    match = _HEADER.fullmatch(header, 10)
    if match is None or len(header) > MAX_HEADER_BYTES:
        raise ValueError("it holds something else than arrays of numbers")
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    num_bytes = len(header) + math.prod(shape) * dtype.itemsize
    return NpyHeader(len(header), dtype, "C" if match[2] == b"False" else "F", shape, num_bytes)


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """Return the array of numbers in a file of numpy's.

    Raises:
        ValueError: if it is another file, or cut.
    """
    header = read_npy_header(data[:MAX_HEADER_BYTES])
    if header.num_bytes != len(data):
        raise ValueError(f"it has {len(data)} bytes, its header says {header.num_bytes}")
    values = np.frombuffer(data, header.dtype, offset=header.first)
    return values.reshape(header.shape, order=header.order)


class _Array:
    """One array, inflated as far as it was asked for."""

    def __init__(self, data: bytes, member: Member) -> None:
        self._member = member
        self._stored = memoryview(data)[member.start : member.start + member.stored_size]
        self._stream = InflateStream(self._stored, -15)
        self._content = bytearray()
        self.is_verified = False
        self._read(min(_HEADER_BYTES, member.size))
        if int.from_bytes(self._content[8:10], "little") > _HEADER_BYTES:
            self._read(min(MAX_HEADER_BYTES, member.size))
        self._header = read_npy_header(self._content)
        self.shape = self._header.shape
        if self._header.num_bytes != member.size:
            raise ValueError("an array has another size than its header says")

    def row(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        count, dim = self.shape
        if not 0 <= index < count:
            raise IndexError(f"there are {count} rows, there is no row {index}")
        header = self._header
        if header.order == "F":
            self._read(self._member.size)
            whole = np.frombuffer(self._content, header.dtype, count * dim, header.first)
            return _as_float32(whole.reshape(dim, count)[:, index])
        start = header.first + index * dim * header.dtype.itemsize
        self._read(start + dim * header.dtype.itemsize)
        return _as_float32(np.frombuffer(self._content, header.dtype, dim, start))

    def _read(self, size: int) -> None:
        """Have the first `size` bytes of the content at hand."""
        if size <= len(self._content):
            return
        if not self._member.is_deflated:
            self._content = bytearray(self._stored)
        else:
            self._content += self._stream.read(size - len(self._content))
        if len(self._content) < size:
            raise ValueError("an array is cut off")
        if len(self._content) == self._member.size:
            if zlib.crc32(self._content) != self._member.checksum:
                raise ValueError("an array is damaged: its checksum differs")
            self.is_verified = True


def _as_float32(values: npt.NDArray[Any]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is noticed
        row: np.ndarray[tuple[int], np.dtype[np.float32]] = values.astype(np.float32)
    return row
