"""What a pickle that torch wrote describes, read without calling anything that it names.

Python's own reader, as far as it is written in Python, has a function for every instruction. Those for dictionaries,
lists, tuples, texts and numbers are taken; in place of those that name, call and change objects stand ours, which know
the functions that make a tensor and call none. Everything else is refused, so that there is nothing to run.

The same reader in C is no choice: nine bytes make it take gigabytes, for as many places as they say are remembered.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pickle import UnpicklingError, _Unpickler
from typing import Any, NoReturn

import attrs
import torch

from mobileclip.tensor_files.errors import CheckpointError, shown

MAX_PICKLE_BYTES = 1 << 23
_MAX_INSTRUCTIONS = 300_000
_MAX_DIMS = 16

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
    stream = io.BytesIO(data)
    stream.seek(position)
    try:
        value = _Reader(stream).load()
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error, UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"its description is malformed ({type(error).__name__}: {shown(str(error))})") from None
    return value, stream.tell()


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
        read, stop = self.read, ord(".")
        for _ in range(_MAX_INSTRUCTIONS):
            (code,) = read(1) or _refuse_end()
            if code == stop:
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise CheckpointError(
                    f"its description has the instruction {bytes([code])!r}, which tensors do not need"
                )
            step(self)
        raise CheckpointError(f"its description has more than {_MAX_INSTRUCTIONS:,} instructions")

    def find_class(self, module: str, name: str) -> Global:
        return Global(f"{module} {name}")

    def persistent_load(self, identity: Any) -> Storage:
        return _storage(identity)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key], [value])

    def set_items(self) -> None:
        items = self.pop_mark()
        self._set(items[0::2], items[1::2])

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(_called(function, arguments))

    def set_state(self) -> None:
        """Leave out what is set beside: the versions of a state dict, or attributes of a parameter."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (dict, Described, Unsupported)):
            raise CheckpointError("it holds an object that is no tensor")

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise TypeError("what items are set in is no dictionary")
        for key in keys:
            if not isinstance(key, (str, int)):
                # Not shown, and not hashed: a tuple of tuples of tuples takes for ever.
                raise CheckpointError(f"it has a {type(key).__name__} where the name of a tensor belongs")
        target.update(zip(keys, values, strict=True))


# None, truth values, numbers, texts, tuples and lists; a mark; what is remembered and recalled; a name; a storage.
_TAKEN = b"N\x88\x89KMJ\x8aGXTU)\x85\x86\x87t]ae}0(qrhjcQ"
_STEPS: dict[int, Callable[[Any], None]] = {code: _Unpickler.dispatch[code] for code in _TAKEN} | {
    ord("s"): _Reader.set_item,
    ord("u"): _Reader.set_items,
    ord("R"): _Reader.call,
    ord("b"): _Reader.set_state,
}


def _refuse_end() -> NoReturn:
    raise CheckpointError("its description is cut off, or too long")


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
        return Unsupported({"tensor_v3": "of a type without a storage", "qtensor": "quantized"}.get(kind, kind))
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
