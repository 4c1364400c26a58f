"""What a pickle that torch wrote describes, read by a machine that knows few instructions and calls nothing.

Python's own reader runs whatever a pickle names. This one builds dictionaries, lists, tuples, texts and numbers, and
knows by name the functions that stand for a tensor. Everything else is refused, so that there is nothing to run.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch

from mobileclip.tensor_files.errors import CheckpointError, shown

MAX_PICKLE_BYTES = 1 << 23
_MAX_INSTRUCTIONS = 300_000
_MAX_INTEGER_BYTES = 16
_MAX_DIMS = 16

_MARK = object()
_CONSTANTS: dict[bytes, Any] = {b")": (), b"\x88": True, b"\x89": False, b"N": None, b"(": _MARK}
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PLAIN: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections OrderedDict": lambda _: {},
    "torch Size": lambda arguments: arguments[0],
    "torch device": lambda _: None,
    "torch.serialization _get_layout": lambda _: None,
}
_TENSOR_TYPES = ("torch Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer")


@attrs.frozen
class Global:
    """The name of a class or function, with a space between module and name."""

    name: str


@attrs.frozen
class Storage:
    """The numbers behind tensors: their type, their name in the file, how many there are."""

    dtype: torch.dtype | str
    key: str
    num_stored: int


@attrs.frozen
class Described:
    """A tensor that lies in a storage: its first number, its shape, and the steps from number to number."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@attrs.frozen
class Unsupported:
    """A tensor of a kind that holds no weights here, such as a sparse one."""

    kind: str


def unpickled(data: bytes, position: int = 0) -> tuple[Any, int]:
    """Return what the pickle at a position describes, and the position behind it.

    Args:
        data: the file, or its beginning.
        position: where the pickle starts.

    Raises:
        CheckpointError: if there is an instruction or a name that tensors do not need, or the pickle is malformed.
    """
    machine = _Machine(data, position)
    try:
        value = machine.run()
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"its description is malformed ({type(error).__name__}: {shown(str(error))})") from None
    return value, machine.position


class _Machine:
    """A stack machine for pickles of the second protocol."""

    def __init__(self, data: bytes, position: int) -> None:
        self.position = position
        self._data = data
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def run(self) -> Any:
        if self._take(2) != b"\x80\x02":
            raise CheckpointError("its description is no pickle of the protocol 2, which torch.save writes by itself")
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._take(1)
            if code == b".":
                return self._stack.pop()
            if code in _CONSTANTS:
                self._stack.append(_CONSTANTS[code])
                continue
            step = _STEPS.get(code)
            if step is None:
                raise CheckpointError(f"its description has the instruction {code!r}, which tensors do not need")
            step(self)
        raise CheckpointError(f"its description has more than {_MAX_INSTRUCTIONS:,} instructions")

    def number(self, num_bytes: int, *, signed: bool = False) -> None:
        self._stack.append(self._number(num_bytes, signed=signed))

    def long_number(self) -> None:
        num_bytes = self._number(1)
        if num_bytes > _MAX_INTEGER_BYTES:
            raise CheckpointError(f"its description has a number of {num_bytes} bytes")
        self.number(num_bytes, signed=True)

    def fraction(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def text(self, length_bytes: int, encoding: str) -> None:
        self._stack.append(self._take(self._number(length_bytes)).decode(encoding))

    def name(self) -> None:
        self._stack.append(Global(f"{self._line()} {self._line()}"))

    def empty(self, kind: type[Any]) -> None:
        self._stack.append(kind())

    def pop(self) -> None:
        self._stack.pop()

    def remember(self, num_bytes: int) -> None:
        self._memory[self._number(num_bytes)] = self._stack[-1]

    def recall(self, num_bytes: int) -> None:
        self._stack.append(self._memory[self._number(num_bytes)])

    def tuple_of(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) < count:
            raise IndexError("the stack is too short")
        self._stack[-count:] = [tuple(items)]

    def tuple_since_mark(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def append(self) -> None:
        item = self._stack.pop()
        self._list().append(item)

    def append_since_mark(self) -> None:
        items = self._since_mark()
        self._list().extend(items)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set({key if isinstance(key, (str, int)) else _refuse_key(key): value})

    def set_items_since_mark(self) -> None:
        items = self._since_mark()
        for key in items[0::2]:
            if not isinstance(key, (str, int)):
                _refuse_key(key)
        self._set(dict(zip(items[0::2], items[1::2], strict=True)))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_called(function, arguments))

    def set_state(self) -> None:
        """Leave out what is set beside: the versions of a state dict, or attributes of a parameter."""
        self._stack.pop()
        if not isinstance(self._stack[-1], (dict, Described, Unsupported)):
            raise CheckpointError("it holds an object that is no tensor")

    def storage(self) -> None:
        self._stack.append(_storage(self._stack.pop()))

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("what is appended to is no list")
        return target

    def _set(self, items: dict[Any, Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise TypeError("what items are set in is no dictionary")
        target.update(items)

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("a mark is missing")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > len(self._data):
            raise CheckpointError("its description is cut off, or too long")
        return self._data[start : self.position]

    def _number(self, num_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(num_bytes), "little", signed=signed)

    def _line(self) -> str:
        return self._take(self._data.index(b"\n", self.position) + 1 - self.position)[:-1].decode()


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    b"K": partial(_Machine.number, num_bytes=1),
    b"M": partial(_Machine.number, num_bytes=2),
    b"J": partial(_Machine.number, num_bytes=4, signed=True),
    b"\x8a": _Machine.long_number,
    b"G": _Machine.fraction,
    b"X": partial(_Machine.text, length_bytes=4, encoding="utf-8"),
    b"T": partial(_Machine.text, length_bytes=4, encoding="latin-1"),
    b"U": partial(_Machine.text, length_bytes=1, encoding="latin-1"),
    b"c": _Machine.name,
    b"]": partial(_Machine.empty, kind=list),
    b"}": partial(_Machine.empty, kind=dict),
    b"0": _Machine.pop,
    b"q": partial(_Machine.remember, num_bytes=1),
    b"r": partial(_Machine.remember, num_bytes=4),
    b"h": partial(_Machine.recall, num_bytes=1),
    b"j": partial(_Machine.recall, num_bytes=4),
    b"\x85": partial(_Machine.tuple_of, count=1),
    b"\x86": partial(_Machine.tuple_of, count=2),
    b"\x87": partial(_Machine.tuple_of, count=3),
    b"t": _Machine.tuple_since_mark,
    b"a": _Machine.append,
    b"e": _Machine.append_since_mark,
    b"s": _Machine.set_item,
    b"u": _Machine.set_items_since_mark,
    b"R": _Machine.call,
    b"b": _Machine.set_state,
    b"Q": _Machine.storage,
}


def _refuse_key(key: Any) -> str:
    # Not shown, and not hashed: a tuple of tuples of tuples takes for ever.
    raise CheckpointError(f"it has a {type(key).__name__} where the name of a tensor belongs")


def _called(function: Any, arguments: Any) -> Any:
    """Return what stands for the result of a call, which is not made."""
    name = function.name if isinstance(function, Global) else type(function).__name__
    if not isinstance(arguments, tuple):
        raise TypeError("a call without arguments")
    if name in _PLAIN:
        return _PLAIN[name](arguments)
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        return _described(*arguments[:4])
    if name in ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"):
        return _tensor(arguments[0])
    if name == "torch._tensor _rebuild_from_type_v2" and arguments[1] in map(Global, _TENSOR_TYPES):
        return _called(arguments[0], arguments[2])
    if name.startswith("torch._utils _rebuild_") or name == "torch._tensor _rebuild_from_type_v2":
        kind = name.rpartition(" _rebuild_")[2].removesuffix("_tensor")
        return Unsupported({"v3": "of a type without a storage", "qtensor": "quantized"}.get(kind, kind))
    raise CheckpointError(f"it holds more than tensors: it calls {shown(name)}, which could run anything")


def _tensor(value: Any) -> Described | Unsupported:
    if not isinstance(value, (Described, Unsupported)):
        raise TypeError("a parameter without a tensor")
    return value


def _described(storage: Any, offset: Any, shape: Any, stride: Any) -> Described | Unsupported:
    numbers = (offset, *shape, *stride)
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise TypeError("a tensor's place is no number")
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > _MAX_DIMS:
        raise TypeError("a tensor without a storage, or of too many dimensions")
    return Described(storage, offset, tuple(shape), tuple(stride))


def _storage(identity: Any) -> Storage:
    kind, storage, key, _, num_stored, *view = identity
    if kind != "storage" or not isinstance(storage, Global) or any(part is not None for part in view):
        raise CheckpointError("it holds something else than the numbers of tensors")
    if not isinstance(key, str) or type(num_stored) is not int or num_stored < 0:
        raise TypeError("a storage without a name or a size")
    module, _, name = storage.name.partition(" ")
    if module not in ("torch", "torch.cuda", "torch.storage"):
        raise CheckpointError(f"it holds more than tensors: {shown(storage.name)}")
    return Storage(_DTYPES.get(name, name), key, num_stored)
