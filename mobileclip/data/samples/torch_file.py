"""Tensors in a file that torch wrote, row by row; the pickle that describes them is read and never run.

`torch.load(weights_only=True)` takes twice the time of a record, and a file of 700 bytes keeps it busy for ever.

Python's own reader of pickles, as far as it is written in Python, has a function for every instruction. Those for
dictionaries, tuples, texts and numbers are taken; in place of those that name, call and change objects stand ours,
which know the functions that make a tensor and call none. Everything else is refused, so that there is nothing to run.
The same reader in C is no choice: nine bytes make it take gigabytes, for as many places as they say are remembered.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from pickle import UnpicklingError, _Unpickler
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from mobileclip.data.samples.limits import DIRECTORY_BYTES
from mobileclip.data.samples.zips import zip_members
from mobileclip.data.skips import BadSampleError
from mobileclip.tensor_files.errors import CheckpointError, shown

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
        found = zip_members(io.BytesIO(data), len(data), directory_bytes=DIRECTORY_BYTES)
        if len({name.partition("/")[0] for name in found}) != 1:
            raise CheckpointError("it is an archive, but none of torch's: its files are not in one folder")
        if any(one.is_deflated for one in found.values()):
            raise CheckpointError("a file in it is compressed, which torch does not do; unpack and save again")
        files = {
            name.partition("/")[2]: memoryview(data)[one.start : one.start + one.size] for name, one in found.items()
        }
        if not {"data.pkl", "byteorder"} <= files.keys():
            raise ValueError("it is no file of torch's")
        order, description = bytes(files["byteorder"]), bytes(files["data.pkl"])
        if order != b"little" or len(description) > _MAX_DESCRIPTION_BYTES:
            raise ValueError("its numbers or its description are of another kind")
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, tensor in described_tensors(description).items():
            numbers = files.get(f"data/{tensor.storage.key}")
            if numbers is None:
                raise ValueError("a tensor has no numbers")
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
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error, UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"its description is malformed ({type(error).__name__}: {shown(str(error))})") from None
    if type(value) is not dict or not all(isinstance(tensor, Described) for tensor in value.values()):
        raise ValueError("it holds something else than a dictionary of tensors of embeddings")
    return value


def _rows(numbers: npt.NDArray[Any], tensor: Described) -> npt.NDArray[Any]:
    """Return a tensor as a view of its storage, having looked that it lies within."""
    (count, dim), (down, right) = tensor.shape, tensor.stride
    last = tensor.offset + (count - 1) * down + (dim - 1) * right if count and dim else -1
    if len(numbers) != tensor.storage.num_stored or last >= len(numbers):
        raise ValueError("a tensor is cut off")
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
