"""Row-by-row readers of embeddings in the public layouts: arrays in an npz or in a compressed torch file.

numpy's and torch's own readers slow a loader down by 6 to 20 %, and a forged file of 700 bytes blocks torch's reader
forever. Npz files and torch files are zip files. `zipfile` opens a file, decompresses an npz up to the wanted row, and
compares checksums.

This module parses the pickle that describes tensors, but never runs the pickle. Python's pure-Python unpickler has one
method per instruction. This module keeps the methods for dictionaries, tuples, strings and numbers, and replaces the
methods for names, calls and assignments: the new methods recognise torch's functions for tensors without calling any
function. All other instructions raise an error. The C unpickler is unsuitable, because a pickle of nine bytes makes the
unpickler's memo allocate gigabytes.

If zlib-ng is installed (extra `speed`), `gunzip` uses zlib-ng, with the same result.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pickle import UnpicklingError, _Unpickler
from types import ModuleType
from typing import Any, Literal, NamedTuple, NoReturn

import attrs
import numpy as np
import numpy.typing as npt
import torch

from mobileclip.data.samples.limits import TooLargeError
from mobileclip.data.skips import BadSampleError
from mobileclip.storage import printable
from mobileclip.tensor_files.errors import CheckpointError, shown

Embeddings = npt.NDArray[np.float32]

# Maximum number of files in an archive, far more than an archive of embeddings has.
_MOST_MEMBERS, _SMALL_BYTES = 500, 2**20
_ENTRY = b"PK\x01\x02"
# Exceptions of `zipfile` and zlib for damaged, encrypted and unknown content.
_DAMAGE = (
    *(ValueError, RuntimeError, EOFError, OverflowError),  # includes NotImplementedError
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


class EmbeddingRows(ABC):
    """Interface of stored embeddings, readable row by row."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every array by name; (number of rows, dim) for well-formed arrays."""

    def row(self, name: str, index: int) -> Embeddings:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if the row is damaged, or contains NaN or infinity.
        """
        row = self._row(name, index)
        if not np.isfinite(row).all():
            raise BadSampleError("not_finite", f"row {index} of {name} contains NaN or infinity")
        return row

    @abstractmethod
    def _row(self, name: str, index: int) -> Embeddings:
        """Return one row of an array, without checking its numbers."""


def _open_zip(data: bytes) -> zipfile.ZipFile:
    """Open a zip file; reject archives with too many files, duplicate names or unusual compression."""
    # Count the files of a large archive before reading them.
    is_crowded = len(data) > _SMALL_BYTES and data.count(_ENTRY) > _MOST_MEMBERS
    try:
        archive = None if is_crowded else zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGE as error:
        raise CheckpointError(f"the archive is not a zip file, or is damaged: {printable(error, limit=200)}") from None
    if archive is None or len(archive.infolist()) > _MOST_MEMBERS:
        raise CheckpointError(f"the archive has more than {_MOST_MEMBERS} files")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
        raise CheckpointError("the archive uses a compression other than deflate")
    if len(archive.NameToInfo) < len(archive.infolist()):
        raise CheckpointError("the archive is damaged: a name occurs twice")
    if sum(info.compress_size for info in archive.infolist()) > len(data):
        raise CheckpointError("the archive is damaged: files overlap")
    return archive


MAX_HEADER_BYTES = 1024
"""Maximum size of the header of an array of numbers, in bytes."""
_HEADER_BYTES = 128
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?(?:[iu][1248]|f[248]))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,10}(?:, ?[0-9]{1,10})*,?)?)\), \} *\n"
)
# Far above any real embedding; numbers from a damaged stream soon exceed this limit.
_LARGEST = 2.0**64


class NpzRows(EmbeddingRows):
    """Embeddings in an npz that numpy wrote, read row by row.

    The reader compares the checksum of an array after reading the whole array. Before the end of the array, the reader
    detects a damaged row only by a decompression error or by impossible numbers.

    Args:
        data: content of the npz.
        limit: maximum decompressed size of all arrays, in bytes.

    Raises:
        TooLargeError: if the arrays exceed the limit.
        ValueError: if the file is not an npz, or contains something other than arrays of numbers.
    """

    def __init__(self, data: bytes, *, limit: int) -> None:
        archive = _open_zip(data)
        num_bytes = sum(info.file_size for info in archive.infolist())
        if num_bytes > limit:
            raise TooLargeError(f"the arrays have {num_bytes:,} bytes, more than the limit of {limit:,}")
        self._arrays = {info.filename.removesuffix(".npy"): _Array(archive, info) for info in archive.infolist()}
        if len(self._arrays) < len(archive.infolist()):
            raise CheckpointError("two arrays have the same name")
        self.shapes = {name: array.header.shape for name, array in self._arrays.items()}

    def _row(self, name: str, index: int) -> Embeddings:
        array = self._arrays[name]
        try:
            row = array.row(index)
        except _DAMAGE as error:
            raise BadSampleError("bad_embedding", f"npz: {name}: {error}") from None
        largest = float(np.abs(row).max())
        if _LARGEST < largest < np.inf and not array.is_verified:
            raise BadSampleError("bad_embedding", f"npz: row {index} of {name} is damaged: it contains {largest:.0e}")
        return row


class _Array:
    """One array, which is decompressed only as far as needed."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._size, self._content = info.file_size, bytearray()
        try:
            self._stream = archive.open(info)
            self._read(min(_HEADER_BYTES, self._size))
            if int.from_bytes(self._content[8:10], "little") > _HEADER_BYTES:
                self._read(min(MAX_HEADER_BYTES, self._size))
        except _DAMAGE as error:
            raise CheckpointError(f"an array is damaged: {printable(error, limit=200)}") from None
        self.header = read_npy_header(self._content)
        if self.header.num_bytes != self._size:
            raise CheckpointError("the size of an array differs from its header")

    @property
    def is_verified(self) -> bool:
        """Whether the array was read completely and its checksum was compared."""
        return len(self._content) == self._size

    def row(self, index: int) -> Embeddings:
        header = self.header
        count, dim = header.shape
        if not 0 <= index < count:
            raise IndexError(f"row {index} does not exist: the array has {count} rows")
        if header.order == "F":
            self._read(self._size)
            whole = np.frombuffer(self._content, header.dtype, count * dim, header.first)
            return _as_float32(whole.reshape(dim, count)[:, index])
        start = header.first + index * dim * header.dtype.itemsize
        self._read(start + dim * header.dtype.itemsize)
        return _as_float32(np.frombuffer(self._content, header.dtype, dim, start))

    def _read(self, size: int) -> None:
        """Decompress at least the first `size` bytes of the content."""
        if size > len(self._content):
            self._content += self._stream.read(size - len(self._content))
            if len(self._content) < size:
                raise CheckpointError("an array is truncated")


def _as_float32(values: npt.NDArray[Any]) -> Embeddings:
    with np.errstate(over="ignore"):  # too large numbers become infinite, which is detected later
        return values.astype(np.float32)


@attrs.frozen
class NpyHeader:
    """The header of a `.npy` file: dtype, order and shape of its array.

    Args:
        first: offset of the first number.
        dtype: dtype of the numbers.
        order: `C` (row-major) or `F` (column-major).
        shape: shape of the array.
        num_bytes: expected size of the whole file.
    """

    first: int
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    shape: tuple[int, ...]
    num_bytes: int


def read_npy_header(start: bytes | bytearray) -> NpyHeader:
    """Parse the header of a `.npy` file, and check it before any allocation.

    Args:
        start: the first `MAX_HEADER_BYTES` of the file, or the whole file.

    Raises:
        ValueError: if the file is not an array of numbers in numpy's format 1.
    """
    return _header(bytes(start[: 10 + int.from_bytes(start[8:10], "little")]))


@lru_cache(maxsize=1024)  # samples of a data set have one header or a few
def _header(header: bytes) -> NpyHeader:
    if header[:8] != b"\x93NUMPY\x01\x00":
        raise CheckpointError("the file contains something other than arrays in numpy's format 1")
    match = _HEADER.fullmatch(header, 10)
    if match is None or len(header) > MAX_HEADER_BYTES:
        raise CheckpointError("the file contains something other than arrays of numbers")
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    num_bytes = len(header) + math.prod(shape) * dtype.itemsize
    return NpyHeader(len(header), dtype, "C" if match[2] == b"False" else "F", shape, num_bytes)


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """Return the array of numbers in a `.npy` file.

    Raises:
        ValueError: if the file is not an array of numbers, or is truncated.
    """
    header = read_npy_header(data[:MAX_HEADER_BYTES])
    if header.num_bytes != len(data):
        raise CheckpointError(f"the file has {len(data)} bytes, but the header declares {header.num_bytes}")
    values = np.frombuffer(data, header.dtype, offset=header.first)
    return values.reshape(header.shape, order=header.order)


# numpy has no bfloat16, so the raw bits are read.
_NUMBERS = {"BFloat16Storage": "<u2", "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8"}
_GZIP = b"\x1f\x8b"
# A gzip file may have several members; no writer makes this many for one sample.
_MAX_PARTS = 64
# The description of two arrays takes about 250 bytes.
_MAX_DESCRIPTION_BYTES = 1 << 14


class TorchRows(EmbeddingRows):
    """Embeddings in a dictionary of 2-d tensors that torch saved, read row by row.

    Args:
        data: content of the file after gzip decompression. The reader rejects compressed files in the archive, so the
            tensors are not larger than `data`.

    Raises:
        ValueError: if the file is damaged, or is not a dictionary of 2-d tensors that torch saved.
    """

    def __init__(self, data: bytes) -> None:
        archive = _open_zip(data)
        if len({name.partition("/")[0] for name in archive.namelist()}) != 1:
            raise CheckpointError("the archive is not a torch file: the files are not in one folder")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise CheckpointError("a file in the archive is compressed, unlike in torch's files; unpack and save again")
        folder = archive.namelist()[0].partition("/")[0]
        if _content(archive, f"{folder}/byteorder") != b"little":
            raise CheckpointError("the numbers are not little-endian")
        description = _content(archive, f"{folder}/data.pkl")
        if len(description) > _MAX_DESCRIPTION_BYTES:
            raise CheckpointError(f"the pickle has more than {_MAX_DESCRIPTION_BYTES:,} bytes")
        self._arrays = {
            name: _rows(_content(archive, f"{folder}/data/{tensor.storage.key}"), tensor)
            for name, tensor in described_tensors(description).items()
        }
        self.shapes = {name: array.shape for name, array in self._arrays.items()}

    def _row(self, name: str, index: int) -> Embeddings:
        stored = self._arrays[name][index]
        if stored.dtype == np.uint16:
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return _as_float32(stored)


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    numbers: str
    key: str
    num_stored: int


class TensorDescription(NamedTuple):
    """A 2-d tensor: its storage, offset, shape and strides."""

    storage: _Storage
    offset: int
    shape: tuple[int, int]
    stride: tuple[int, int]


@lru_cache(maxsize=64)  # samples of a data set have one description or a few
def described_tensors(pickle: bytes) -> Mapping[str, TensorDescription]:
    """Return the tensors that a pickle describes, without running the pickle.

    Raises:
        ValueError: if the pickle has an instruction that tensors do not need, or describes something other than
            tensors.
    """
    try:
        value = _Reader(io.BytesIO(pickle)).load()
    except CheckpointError:
        raise
    except EOFError:
        raise CheckpointError("the pickle is truncated or too long") from None
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error, UnpicklingError) as error:
        raise CheckpointError(f"the pickle is malformed ({type(error).__name__}: {shown(str(error))})") from None
    if type(value) is not dict or not all(isinstance(tensor, TensorDescription) for tensor in value.values()):
        raise CheckpointError("the file contains something other than a dictionary of embedding tensors")
    return value


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (KeyError, *_DAMAGE) as error:
        raise CheckpointError(f"the archive is damaged, or not a torch file: {printable(error, limit=200)}") from None


def _rows(stored: bytes, tensor: TensorDescription) -> npt.NDArray[Any]:
    """Return a tensor as a view of a storage, after checking that the tensor lies within the storage."""
    numbers = np.frombuffer(stored, tensor.storage.numbers)
    (count, dim), (down, right) = tensor.shape, tensor.stride
    last = tensor.offset + (count - 1) * down + (dim - 1) * right if count and dim else -1
    if len(numbers) != tensor.storage.num_stored or last >= len(numbers):
        raise CheckpointError("a tensor is truncated")
    if last < 0:
        return np.empty((count, dim), numbers.dtype)
    strides = (down * numbers.itemsize, right * numbers.itemsize)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], (count, dim), strides, writeable=False)


class _Steps(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> NoReturn:
        raise CheckpointError(f"the pickle has the instruction {bytes([code])!r}, which tensors do not need")


class _Reader(_Unpickler):
    """Python's unpickler, restricted to the instructions of protocol 2 that tensors need."""

    pop_mark: Callable[[], list[Any]]
    stack: list[Any]
    append: Callable[[Any], None]
    # Protocol and end; None, booleans, numbers, strings and tuples; dictionary and mark; memo; names; storages.
    dispatch = _Steps((code, _Unpickler.dispatch[code]) for code in b"\x80.N\x88\x89KMJX)\x85\x86\x87t}(qrhjcQ")

    def find_class(self, module: str, name: str) -> _Global:
        return _Global(f"{module} {name}")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, storage, key, _, count, *view = identity
        if kind != "storage" or not isinstance(storage, _Global) or any(part is not None for part in view):
            raise CheckpointError("the file contains something other than the numbers of tensors")
        numbers = _NUMBERS.get(storage.name.removeprefix("torch "))
        if numbers is None:
            raise CheckpointError(f"the file contains {shown(storage.name)}, expected floats")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise TypeError("a storage has no name or no size")
        return _Storage(numbers, key, count)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self.pop_mark())

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(_called(function, arguments))

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError("items are set in an object that is not a dictionary")
        for key in items[0::2]:
            if not isinstance(key, str):
                # The key is neither shown nor hashed, because deeply nested tuples would take forever.
                raise CheckpointError(f"the file has a {type(key).__name__}, expected the name of a tensor")
        self.stack[-1].update(zip(items[0::2], items[1::2], strict=True))

    dispatch |= {ord("s"): set_item, ord("u"): set_items, ord("R"): call}


def _called(function: Any, arguments: Any) -> Any:
    """Return a placeholder for the result of a call, without calling."""
    name = function.name if isinstance(function, _Global) else type(function).__name__
    if name == "collections OrderedDict":
        return {}
    if name == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        numbers = (offset, *shape, *stride)
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise TypeError("the offset, shape or stride of a tensor is invalid")
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor has no storage")
        if len(shape) != 2 or len(stride) != 2:
            raise CheckpointError("the file contains something other than 2-d tensors of embeddings")
        return TensorDescription(storage, offset, tuple(shape), tuple(stride))
    if name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], TensorDescription):
        return arguments[0]
    raise CheckpointError(f"the pickle contains more than tensors: it calls {shown(name)}, which could run any code")


def as_float32(value: Any) -> Embeddings:
    """Convert an array or tensor of any precision to float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float32).numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def read_embeddings(name: str, data: bytes, *, limit: int) -> EmbeddingRows:
    """Return the embeddings in a member of the public layouts; a compressed npz is decompressed only as far as needed.

    Args:
        name: name of the member, ending in `npz` or `pth.gz`.
        data: content of the member.
        limit: maximum decompressed size, in bytes.

    Raises:
        BadSampleError: if the member is damaged, contains something other than embeddings, or exceeds the limit.
    """
    try:
        return NpzRows(data, limit=limit) if name.endswith("npz") else TorchRows(_decompressed(data, limit))
    except TooLargeError as error:
        raise BadSampleError("too_large", f"{name}: {error}") from None
    except (ValueError, zlib.error) as error:
        raise BadSampleError("bad_embedding", f"{name}: {error}") from None


def write_npz(arrays: Mapping[str, Embeddings]) -> bytes:
    """Return the content of an `npz` member with float32 arrays."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # no array has the name allow_pickle
    return stream.getvalue()


def write_pth_gz(arrays: Mapping[str, Embeddings]) -> bytes:
    """Return the content of a `pth.gz` member with bfloat16 tensors."""
    stream = io.BytesIO()
    torch.save({name: torch.from_numpy(value.copy()).bfloat16() for name, value in arrays.items()}, stream)
    return gzip.compress(stream.getvalue(), mtime=0)


def gunzip(data: bytes, *, limit: int) -> bytes:
    """Return the decompressed content of gzip data.

    Args:
        data: content of a gzip file.
        limit: maximum number of decompressed bytes; at most one byte more is decompressed.

    Raises:
        TooLargeError: if the data exceeds the limit.
        ValueError: if the data has more than 64 gzip members.
        zlib.error: if the data is damaged.
    """
    content: bytes = b""
    for _ in range(_MAX_PARTS):
        stream = _library().decompressobj(31)
        try:
            content += stream.decompress(data, limit + 1 - len(content))
        except _library().error as error:
            raise zlib.error(str(error)) from None
        if len(content) > limit:
            raise TooLargeError(f"the data inflates to more than the limit of {limit:,} bytes")
        if not stream.eof:
            raise zlib.error("incomplete or truncated stream")
        data = stream.unused_data.lstrip(b"\0")
        if not data:
            return content
    raise ValueError(f"the data has more than {_MAX_PARTS} gzip members")


@cache
def _library() -> ModuleType:
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return zlib
    library: ModuleType = zlib_ng
    return library


def _decompressed(data: bytes, limit: int) -> bytes:
    # webdataset's writer compresses members whose names end in .gz, so compressed content may be compressed twice.
    for _ in range(2):
        if data[:2] == _GZIP:
            data = gunzip(data, limit=limit)
    return data
