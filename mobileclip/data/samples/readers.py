"""Embeddings as the public layouts store them: arrays in an npz or in a compressed torch file, read row by row.

numpy's and torch's own readers take 6 to 20 % more of a loader's time, and a file of 700 bytes keeps torch's busy for
ever. An npz is inflated no further than the row that is wanted. The pickle that describes tensors is read and never
run: Python's own reader of pickles, as far as it is written in Python, has a function for every instruction. Those for
dictionaries, tuples, texts and numbers are taken; in place of those that name, call and change objects stand ours,
which know the functions that make a tensor and call none. Everything else is refused. The same reader in C is no
choice: nine bytes make it take gigabytes, for as many places as they say are remembered.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pickle import UnpicklingError, _Unpickler
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import attrs
import numpy as np
import numpy.typing as npt
import torch

from mobileclip.data.samples.inflate import GZIP, InflateStream, TooLargeError, gunzip
from mobileclip.data.skips import BadSampleError
from mobileclip.storage import printable
from mobileclip.tensor_files.errors import CheckpointError, shown

# Of files in an archive, far more than embeddings have; they are counted before they are looked at.
_MOST_MEMBERS = 500
_ENTRY, _LOCAL, _LENGTHS = b"PK\x01\x02", b"PK\x03\x04", struct.Struct("<26x2H")
_ENCRYPTED, _UTF_8 = 1, 0x800


@attrs.frozen
class Member:
    """A file in a zip file.

    Args:
        stored: its content, as it is stored.
        size: of its content, in bytes.
        checksum: CRC-32 of its content.
        is_deflated: whether it is compressed.
    """

    stored: memoryview
    size: int
    checksum: int
    is_deflated: bool


def zip_members(data: bytes) -> dict[str, Member]:
    """Return the files in a zip file by name.

    Raises:
        ValueError: if it is none, damaged, or has what no file of embeddings has: very many files, a name twice,
            encryption, or a method of compression other than deflate.
    """
    if data.count(_ENTRY) > _MOST_MEMBERS:
        raise CheckpointError(f"it is an archive of more than {_MOST_MEMBERS} files")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError) as error:
        raise CheckpointError(f"it is no zip file, or damaged: {printable(str(error), limit=200)}") from None
    found: dict[str, Member] = {}
    for info in infos:
        is_deflated, start = info.compress_type == zipfile.ZIP_DEFLATED, max(0, info.header_offset)
        is_plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8 else "cp437")
        header = data[start : start + _LENGTHS.size + len(name)]
        is_there = header.startswith(_LOCAL) and header[_LENGTHS.size :] == name and info.filename not in found
        if info.flag_bits & _ENCRYPTED or not is_there or not (is_deflated or is_plain):
            raise CheckpointError(f"{printable(info.filename, limit=200)} in it is damaged, there twice, or encrypted")
        start += _LENGTHS.size + sum(_LENGTHS.unpack_from(header))
        stored = memoryview(data)[start : start + info.compress_size]
        found[info.filename] = Member(stored, info.file_size, info.CRC, is_deflated)
    return found


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
        found = zip_members(data)
        num_bytes = sum(member.size for member in found.values())
        if num_bytes > limit:
            raise TooLargeError(f"it holds {num_bytes:,} bytes, more than the {limit:,} that it may")
        self._arrays = {name.removesuffix(".npy"): _Array(member) for name, member in found.items()}
        if len(self._arrays) < len(found):
            raise CheckpointError("two arrays have one name")

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
        raise CheckpointError("it holds something else than arrays of numpy's first format")
    match = _HEADER.fullmatch(header, 10)
    if match is None or len(header) > MAX_HEADER_BYTES:
        raise CheckpointError("it holds something else than arrays of numbers")
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
        raise CheckpointError(f"it has {len(data)} bytes, its header says {header.num_bytes}")
    values = np.frombuffer(data, header.dtype, offset=header.first)
    return values.reshape(header.shape, order=header.order)


class _Array:
    """One array, inflated as far as it was asked for."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._stream = InflateStream(member.stored, -15)
        self._content = bytearray()
        self.is_verified = False
        self._read(min(_HEADER_BYTES, member.size))
        if int.from_bytes(self._content[8:10], "little") > _HEADER_BYTES:
            self._read(min(MAX_HEADER_BYTES, member.size))
        self._header = read_npy_header(self._content)
        self.shape = self._header.shape
        if self._header.num_bytes != member.size:
            raise CheckpointError("an array has another size than its header says")

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
            self._content = bytearray(self._member.stored)
        else:
            self._content += self._stream.read(size - len(self._content))
        if len(self._content) < size:
            raise CheckpointError("an array is cut off")
        if len(self._content) == self._member.size:
            if zlib.crc32(self._content) != self._member.checksum:
                raise CheckpointError("an array is damaged: its checksum differs")
            self.is_verified = True


def _as_float32(values: npt.NDArray[Any]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is noticed
        row: np.ndarray[tuple[int], np.dtype[np.float32]] = values.astype(np.float32)
    return row


# The numbers of bfloat16, which numpy has not, are taken as they lie in the file.
_NUMBERS = {"BFloat16Storage": "<u2", "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8"}
# Two arrays take some 250 bytes.
_MAX_DESCRIPTION_BYTES = 1 << 14


class TorchRows:
    """Embeddings in a dictionary of 2-d tensors that torch saved, read row by row.

    Args:
        data: the file, uncompressed; it is damaged or not as a whole, and was checked before. It holds no more than it
            has bytes: files in it that are compressed are refused.

    Raises:
        ValueError: if it is none, or holds something else.
    """

    def __init__(self, data: bytes) -> None:
        found = zip_members(data)
        if len({name.partition("/")[0] for name in found}) != 1:
            raise CheckpointError("it is an archive, but none of torch's: its files are not in one folder")
        if any(one.is_deflated for one in found.values()):
            raise CheckpointError("a file in it is compressed, which torch does not do; unpack and save again")
        files = {name.partition("/")[2]: one.stored for name, one in found.items()}
        if not {"data.pkl", "byteorder"} <= files.keys():
            raise CheckpointError("it is no file of torch's")
        order, description = bytes(files["byteorder"]), bytes(files["data.pkl"])
        if order != b"little" or len(description) > _MAX_DESCRIPTION_BYTES:
            raise CheckpointError("its numbers or its description are of another kind")
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, tensor in described_tensors(description).items():
            numbers = files.get(f"data/{tensor.storage.key}")
            if numbers is None:
                raise CheckpointError("a tensor has no numbers")
            self._arrays[name] = _rows(np.frombuffer(numbers, tensor.storage.numbers), tensor)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name: (number of rows, dim)."""
        return {name: array.shape for name, array in self._arrays.items()}

    def row(self, name: str, index: int) -> npt.NDArray[np.float32]:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if it holds NaN or infinity.
        """
        stored = self._arrays[name][index]
        row: npt.NDArray[np.float32]
        if stored.dtype == np.uint16:
            row = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, which is noticed
                row = stored.astype(np.float32)
        if not np.isfinite(row).all():
            raise BadSampleError("not_finite", f"row {index} of {name} holds NaN or infinity")
        return row


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    numbers: str
    key: str
    num_stored: int


class Described(NamedTuple):
    """A tensor of two dimensions: the storage it lies in, its first number, its shape, the steps between numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, int]
    stride: tuple[int, int]


@lru_cache(maxsize=64)  # samples of a data set have one description, or few
def described_tensors(pickle: bytes) -> Mapping[str, Described]:
    """Return the tensors that a pickle describes, which is not run.

    Raises:
        ValueError: if it has an instruction that they do not need, or describes something else.
    """
    try:
        value = _Reader(io.BytesIO(pickle)).load()
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error, UnpicklingError) as error:
        raise CheckpointError(f"its description is malformed ({type(error).__name__}: {shown(str(error))})") from None
    if type(value) is not dict or not all(isinstance(tensor, Described) for tensor in value.values()):
        raise CheckpointError("it holds something else than a dictionary of tensors of embeddings")
    return value


def _rows(numbers: npt.NDArray[Any], tensor: Described) -> npt.NDArray[Any]:
    """Return a tensor as a view of its storage, having looked that it lies within."""
    (count, dim), (down, right) = tensor.shape, tensor.stride
    last = tensor.offset + (count - 1) * down + (dim - 1) * right if count and dim else -1
    if len(numbers) != tensor.storage.num_stored or last >= len(numbers):
        raise CheckpointError("a tensor is cut off")
    if last < 0:
        return np.empty((count, dim), numbers.dtype)
    strides = (down * numbers.itemsize, right * numbers.itemsize)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], (count, dim), strides, writeable=False)


class _Reader(_Unpickler):
    """Python's reader of pickles of the second protocol, with the instructions that tensors need."""

    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin-1")
        self.read, self.readline = stream.read, stream.readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append

    def load(self) -> Any:
        if self.read(2) != b"\x80\x02":
            raise CheckpointError("its description is no pickle of the protocol 2, which torch.save writes by itself")
        while True:
            (code,) = self.read(1) or _refuse_end()
            if code == ord("."):
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise CheckpointError(
                    f"its description has the instruction {bytes([code])!r}, which tensors do not need"
                )
            step(self)

    def find_class(self, module: str, name: str) -> _Global:
        return _Global(f"{module} {name}")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, storage, key, _, count, *view = identity
        if kind != "storage" or not isinstance(storage, _Global) or any(part is not None for part in view):
            raise CheckpointError("it holds something else than the numbers of tensors")
        numbers = _NUMBERS.get(storage.name.removeprefix("torch "))
        if numbers is None:
            raise CheckpointError(f"it holds {shown(storage.name)}, where the numbers of embeddings are expected")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise TypeError("a storage without a name or a size")
        return _Storage(numbers, key, count)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key], [value])

    def set_items(self) -> None:
        items = self.pop_mark()
        self._set(items[0::2], items[1::2])

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(_called(function, arguments))

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError("what items are set in is no dictionary")
        for key in keys:
            if not isinstance(key, str):
                # Not shown, and not hashed: a tuple of tuples of tuples takes for ever.
                raise CheckpointError(f"it has a {type(key).__name__} where the name of a tensor belongs")
        self.stack[-1].update(zip(keys, values, strict=True))


# None, truth values, numbers, texts and tuples; a dictionary, a mark; what is remembered and recalled; names; storages.
_STEPS: dict[int, Callable[[Any], None]] = {
    code: _Unpickler.dispatch[code] for code in b"N\x88\x89KMJX)\x85\x86\x87t}(qrhjcQ"
}
_STEPS |= {ord("s"): _Reader.set_item, ord("u"): _Reader.set_items, ord("R"): _Reader.call}


def _refuse_end() -> NoReturn:
    raise CheckpointError("its description is cut off, or too long")


def _called(function: Any, arguments: Any) -> Any:
    """Return what stands for the result of a call, which is not made."""
    name = function.name if isinstance(function, _Global) else type(function).__name__
    if name == "collections OrderedDict":
        return {}
    if name == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        numbers = (offset, *shape, *stride)
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise TypeError("a tensor's place is no number")
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without a storage")
        if len(shape) != 2 or len(stride) != 2:
            raise CheckpointError("it holds something else than 2-d tensors of embeddings")
        return Described(storage, offset, tuple(shape), tuple(stride))
    if name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], Described):
        return arguments[0]
    raise CheckpointError(f"it holds more than tensors: it calls {shown(name)}, which could run anything")


Embeddings = npt.NDArray[np.float32]


class EmbeddingRows(Protocol):
    """Stored embeddings, of which single rows can be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name; (number of rows, dim) where it is well-formed."""

    def row(self, name: str, index: int) -> Embeddings:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if the row is damaged.
        """


def as_float32(value: Any) -> Embeddings:
    """Return an array or a tensor of any precision as float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float32).numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def read_embeddings(name: str, data: bytes, *, limit: int) -> EmbeddingRows:
    """Return the embeddings in a member of the public layouts; a compressed npz is inflated as far as rows are read.

    Args:
        name: the member's name, which ends with `npz` or `pth.gz`.
        data: its content.
        limit: number of bytes that it may inflate to.

    Raises:
        BadSampleError: if it cannot be read, or holds more than it may.
    """
    try:
        return NpzRows(data, limit=limit) if name.endswith("npz") else TorchRows(_decompressed(data, limit))
    except TooLargeError as error:
        raise BadSampleError("too_large", f"{name}: {error}") from None
    except (ValueError, zlib.error) as error:
        raise BadSampleError("bad_embedding", f"{name}: {error}") from None


def write_npz(arrays: Mapping[str, Embeddings]) -> bytes:
    """Return the content of an `npz` member: float32."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # an array is never called allow_pickle
    return stream.getvalue()


def write_pth_gz(arrays: Mapping[str, Embeddings]) -> bytes:
    """Return the content of a `pth.gz` member: bfloat16."""
    stream = io.BytesIO()
    torch.save({name: torch.from_numpy(value.copy()).bfloat16() for name, value in arrays.items()}, stream)
    return gzip.compress(stream.getvalue(), mtime=0)


def _decompressed(data: bytes, limit: int) -> bytes:
    # webdataset's writer compresses members called .gz itself: what was compressed before is compressed twice.
    for _ in range(2):
        if data[:2] == GZIP:
            data = gunzip(data, limit=limit)
    return data
