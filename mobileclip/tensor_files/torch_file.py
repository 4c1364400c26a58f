"""PyTorch's own files, as an archive (since 1.6) or in one stream (before): dictionaries of tensors and no more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import attrs
import torch
from torch import Tensor

from mobileclip.tensor_files.errors import CheckpointError, check_count, shown
from mobileclip.tensor_files.numbers import read_numbers
from mobileclip.tensor_files.pickles import MAX_PICKLE_BYTES, Described, Unsupported, unpickled
from mobileclip.tensor_files.zips import Member, torch_members

_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
STREAM_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little", signed=True)


@attrs.frozen
class _File:
    """A file, and the bytes of each storage in it."""

    data: IO[bytes]
    storages: dict[str, range]


def read_torch(path: Path, num_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a file that torch wrote, each in memory of its own.

    Of training checkpoints that nest the weights, the part `state_dict` is taken.

    Args:
        path: the file.
        num_bytes: its size, more than 0.

    Raises:
        CheckpointError: if it is damaged, or holds something other than tensors.
    """
    with path.open("rb") as file:
        is_stream = file.read(len(STREAM_START)) == STREAM_START
        described, storages = _stream(file, num_bytes) if is_stream else _archive(file, torch_members(file, num_bytes))
        tensors = _dictionary(described)
        contents = _File(file, storages)
        if sum(_checked_bytes(name, tensor, contents) for name, tensor in tensors.items()) > 2 * num_bytes:
            raise CheckpointError("its tensors are larger than the file: too many share their numbers")
        return {name: _tensor(tensor, contents) for name, tensor in tensors.items()}


def _bytes(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _archive(file: IO[bytes], found: dict[str, Member]) -> tuple[Any, dict[str, range]]:
    pickle, order = found.get("data.pkl"), found.get("byteorder")
    if pickle is None:
        raise CheckpointError("it is an archive, but none of torch's: data.pkl is missing")
    if order is not None and _bytes(file, order.start, min(order.size, 8)) != b"little":
        raise CheckpointError("its numbers are in the byte order of another machine; save it on this one")
    if pickle.size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"its description has {pickle.size:,} bytes, and at most {MAX_PICKLE_BYTES:,} are read; save its "
            "state_dict alone"
        )
    described, end = unpickled(_bytes(file, pickle.start, pickle.size))
    if end != pickle.size:
        raise CheckpointError("there is more behind its description")
    prefix = "data/"
    return described, {
        name.removeprefix(prefix): range(member.start, member.start + member.size)
        for name, member in found.items()
        if name.startswith(prefix)
    }


def _stream(file: IO[bytes], num_bytes: int) -> tuple[Any, dict[str, range]]:
    start = _bytes(file, 0, MAX_PICKLE_BYTES + (1 << 16))
    _, position = unpickled(start)
    version, position = unpickled(start, position)
    system, position = unpickled(start, position)
    if version != _STREAM_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it is of an older format, or from a machine of another byte order; save it again")
    described, position = unpickled(start, position)
    keys, position = unpickled(start, position)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise CheckpointError("its list of storages is damaged")
    sizes = {tensor.storage.key: tensor.storage for tensor in _all_tensors(described)}
    storages: dict[str, range] = {}
    for key in keys:
        count = int.from_bytes(_bytes(file, position, 8), "little")
        if key not in sizes or count != sizes[key].num_stored:
            raise CheckpointError(f"the storage {shown(key)} is damaged")
        size = count * _itemsize(sizes[key].dtype)
        position += 8 + size
        storages[key] = range(position - size, position)
    if position != num_bytes:
        raise CheckpointError("it is cut off, or there is more behind its numbers")
    return described, storages


def _all_tensors(value: Any) -> list[Described]:
    """Return every tensor in what a stream describes, however deep: their numbers follow in one order."""
    found: list[Described] = []
    waiting, seen = [value], set[int]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, Described):
            found.append(each)
        elif isinstance(each, (dict, list, tuple)) and id(each) not in seen:
            seen.add(id(each))
            waiting.extend(each.values() if isinstance(each, dict) else each)
    return found


def _dictionary(described: Any) -> dict[str, Described]:
    if isinstance(described, dict) and isinstance(described.get("state_dict"), dict):
        described = described["state_dict"]
    if not isinstance(described, dict) or not described:
        raise CheckpointError("it is not a dictionary from names to tensors; save a model's state_dict")
    check_count(len(described))
    for name, value in described.items():
        if not isinstance(name, str):
            raise CheckpointError(f"it has the number {shown(name)} where the name of a tensor belongs")
        if isinstance(value, Unsupported):
            raise CheckpointError(f"the tensor {shown(name)} is {shown(value.kind)}; weights are plain dense tensors")
        if not isinstance(value, Described):
            raise CheckpointError(
                f"it is not a dictionary from names to tensors: {shown(name)} is a {type(value).__name__}; save a "
                "model's state_dict"
            )
    return described


def _checked_bytes(name: str, described: Described, file: _File) -> int:
    """Return how many bytes a tensor takes, once all of its numbers are known to be in the file."""
    storage, dtype = described.storage, described.storage.dtype
    if isinstance(dtype, str):
        raise CheckpointError(f"the tensor {shown(name)} holds {shown(dtype)}, which is no type of weights")
    place = file.storages.get(storage.key)
    if place is None or len(place) != storage.num_stored * dtype.itemsize:
        raise CheckpointError(f"the numbers of the tensor {shown(name)} are missing or cut off")
    count = math.prod(described.shape)
    if count and (described.offset + _span(described) > storage.num_stored or count > storage.num_stored):
        raise CheckpointError(
            f"the tensor {shown(name)} of shape {shown(described.shape)} needs more numbers than the file has for it "
            "(an expanded tensor? save a contiguous copy)"
        )
    return count * dtype.itemsize


def _tensor(described: Described, file: _File) -> Tensor:
    dtype, count = described.storage.dtype, math.prod(described.shape)
    assert isinstance(dtype, torch.dtype), "checked before"
    if count == 0:
        return torch.empty(described.shape, dtype=dtype)
    span = _span(described)
    start = file.storages[described.storage.key].start + described.offset * dtype.itemsize
    whole = read_numbers(file.data, start, span, dtype).as_strided(described.shape, described.stride)
    return whole if span == count else whole.clone()


def _span(described: Described) -> int:
    """Return how many numbers there are from the first of a tensor to its last."""
    return 1 + sum((side - 1) * step for side, step in zip(described.shape, described.stride, strict=True))


def _itemsize(dtype: torch.dtype | str) -> int:
    return 1 if isinstance(dtype, str) else dtype.itemsize
