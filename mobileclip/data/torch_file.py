"""Tensors in a file that torch wrote, row by row, without running the pickle that describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.data.skips import BadSampleError
from mobileclip.data.zip_directory import STORED, zip_directory

_MARK = object()
_NUMBERS = {b"K": 1, b"M": 2, b"J": 4}
_CONSTANTS: dict[bytes, Any] = {b"(": _MARK, b")": (), b"\x88": True, b"\x89": False}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
# What stands for it in the file: its numbers, of which bfloat16 has none in numpy.
_BFLOAT16 = "BFloat16Storage"
_STORAGES = {_BFLOAT16: "<u2", "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8"}
_REBUILD, _ORDERED_DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_PARAMETER = "torch._utils _rebuild_parameter"
# Two arrays take some 250 bytes.
_MAX_PICKLE_BYTES = 1 << 14


@attrs.frozen(eq=False)
class _Tensor:
    """What a pickle says of a tensor."""

    storage: str
    file: str
    num_stored: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchRows:
    """Embeddings in a dictionary of 2-d tensors that torch saved, read row by row.

    Args:
        data: the file, uncompressed; it is damaged or not as a whole, and was checked before. It holds no more than it
            has bytes: files in it that are compressed are refused.

    Raises:
        ValueError: if it is none, or holds something else.
    """

    def __init__(self, data: bytes) -> None:
        found = zip_directory(data, limit=len(data))
        entries = {name.partition("/")[2]: entry for name, entry in found.items()}
        if not {"data.pkl", "byteorder"} <= entries.keys() or any(one.method != STORED for one in entries.values()):
            raise ValueError("it is no file of torch's")
        order, described = (
            data[entries[name].start : entries[name].start + entries[name].size] for name in ("byteorder", "data.pkl")
        )
        if order != b"little" or len(described) > _MAX_PICKLE_BYTES:
            raise ValueError("its numbers or its description are of another kind")
        self._arrays: dict[str, tuple[str, npt.NDArray[Any]]] = {}
        for name, tensor in _described(described).items():
            entry = entries.get(f"data/{tensor.file}")
            if entry is None:
                raise ValueError("a tensor has no numbers")
            numbers = np.frombuffer(data[entry.start : entry.start + entry.size], _STORAGES[tensor.storage])
            self._arrays[name] = (tensor.storage, _rows(numbers, tensor))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name: (number of rows, dim)."""
        return {name: array.shape for name, (_, array) in self._arrays.items()}

    def row(self, name: str, index: int) -> npt.NDArray[np.float32]:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if it holds NaN or infinity.
        """
        storage, array = self._arrays[name]
        stored = array[index].astype(np.uint32) << 16 if storage == _BFLOAT16 else array[index]
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is noticed
            row: npt.NDArray[np.float32] = (
                stored.view(np.float32) if storage == _BFLOAT16 else stored.astype(np.float32)
            )
        if not np.isfinite(row).all():
            raise BadSampleError("not_finite", f"row {index} of {name} holds NaN or infinity")
        return row


def _rows(numbers: npt.NDArray[Any], tensor: _Tensor) -> npt.NDArray[Any]:
    """Return a tensor as a view of its storage, having looked that it lies within."""
    if len(tensor.shape) != 2 or len(tensor.stride) != 2 or min(*tensor.shape, *tensor.stride, tensor.offset) < 0:
        raise ValueError("it holds something else than 2-d tensors of embeddings")
    (count, dim), (down, right) = tensor.shape, tensor.stride
    last = tensor.offset + (count - 1) * down + (dim - 1) * right if count and dim else -1
    if len(numbers) != tensor.num_stored or last >= len(numbers):
        raise ValueError("a tensor is cut off")
    if last < 0:
        return np.empty((count, dim), numbers.dtype)
    strides = (down * numbers.itemsize, right * numbers.itemsize)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], (count, dim), strides, writeable=False)


@lru_cache(maxsize=64)  # samples of a data set have one description, or few
def _described(pickle: bytes) -> Mapping[str, _Tensor]:
    """Return the tensors that a pickle describes, of which only the few instructions are known that torch needs.

    Raises:
        ValueError: if there is another one, or it describes something else.
    """
    try:
        value = _Reader(pickle).value()
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its description is malformed: {error}") from None
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in value.items()
    ):
        raise ValueError("it holds something else than a dictionary of tensors")
    return value


class _Reader:
    """A stack machine for a pickle of the second protocol."""

    def __init__(self, pickle: bytes) -> None:
        self._pickle = pickle
        self._position = 0
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def value(self) -> Any:
        if self._take(2) != b"\x80\x02":
            raise ValueError("its description is of another protocol")
        while (code := self._take(1)) != b".":
            if code in _NUMBERS:
                self._stack.append(self._number(_NUMBERS[code], signed=code == b"J"))
            elif code in _CONSTANTS:
                self._stack.append(_CONSTANTS[code])
            elif code in _TUPLES:
                self._stack[-_TUPLES[code] :] = [tuple(self._stack[-_TUPLES[code] :])]
            elif code in _STEPS:
                _STEPS[code](self)
            else:
                raise ValueError(f"its description has an instruction {code!r}")
        return self._stack.pop()

    def empty(self) -> None:
        self._stack.append({})

    def text(self) -> None:
        self._stack.append(self._take(self._number(4)).decode())

    def name(self) -> None:
        self._stack.append(f"{self._line()} {self._line()}")

    def remember(self, num_bytes: int) -> None:
        self._memory[self._number(num_bytes)] = self._stack[-1]

    def recall(self, num_bytes: int) -> None:
        self._stack.append(self._memory[self._number(num_bytes)])

    def tuple_since_mark(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def set_items(self) -> None:
        items = self._since_mark()
        for name, value in zip(items[0::2], items[1::2], strict=True):
            self._set(name, value)

    def set_item(self) -> None:
        value, name = self._stack.pop(), self._stack.pop()
        self._set(name, value)

    def _set(self, name: Any, value: Any) -> None:
        # A tuple of tuples that hold each other twice, fifty times over, has a hash that never comes.
        if not isinstance(name, str):
            raise TypeError("a name that is no text")
        self._stack[-1][name] = value

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_rebuilt(function, arguments))

    def leave(self) -> None:
        """Leave what stands for a storage as it is."""

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._pickle):
            raise ValueError("its description is cut off")
        return self._pickle[start : self._position]

    def _number(self, num_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(num_bytes), "little", signed=signed)

    def _line(self) -> str:
        return self._take(self._pickle.index(b"\n", self._position) + 1 - self._position)[:-1].decode()


_STEPS: dict[bytes, Callable[[_Reader], None]] = {
    b"X": _Reader.text,
    b"c": _Reader.name,
    b"q": partial(_Reader.remember, num_bytes=1),
    b"r": partial(_Reader.remember, num_bytes=4),
    b"h": partial(_Reader.recall, num_bytes=1),
    b"j": partial(_Reader.recall, num_bytes=4),
    b"t": _Reader.tuple_since_mark,
    b"}": _Reader.empty,
    b"u": _Reader.set_items,
    b"s": _Reader.set_item,
    b"R": _Reader.call,
    b"Q": _Reader.leave,
}


def _rebuilt(function: Any, arguments: Any) -> Any:
    """Return what a function makes of its arguments; types are compared, and no value is shown that is not a text."""
    if function == _ORDERED_DICT and arguments == ():
        return {}
    if not isinstance(function, str) or not isinstance(arguments, tuple):
        raise TypeError("what is called is no function")
    if function == _PARAMETER:
        return arguments[0]
    if function != _REBUILD:
        raise ValueError(f"it holds something that {function} makes")
    (kind, storage, file, _, num_stored), offset, shape, stride, *_ = arguments
    texts, numbers = (kind, storage, file), (num_stored, offset, *shape, *stride)
    if not all(type(one) is str for one in texts) or not all(type(one) is int for one in numbers):
        raise TypeError("a text or a number is of another type")
    name = storage.partition(" ")[2]
    if kind != "storage" or name not in _STORAGES:
        raise ValueError(f"it holds {storage}")
    return _Tensor(name, file, num_stored, offset, tuple(shape), tuple(stride))
