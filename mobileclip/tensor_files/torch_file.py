"""PyTorch's own files, as an archive (since 1.6) or in one stream (before): dictionaries of tensors and no more."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip.tensor_files.errors import CheckpointError, check_count, shown
from mobileclip.tensor_files.pickles import MAX_PICKLE_BYTES, Described, Unsupported, unpickled
from mobileclip.tensor_files.zips import Member, torch_members

_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
STREAM_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little", signed=True)


@attrs.frozen
class _File:
    """A file in memory as far as it is read, and the bytes of each storage in it."""

    data: mmap.mmap
    storages: dict[str, range]


def read_torch(path: Path, num_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a file that torch wrote; they are read from the file when they are used.

    Of training checkpoints that nest the weights, the part `state_dict` is taken.

    Args:
        path: the file.
        num_bytes: its size, more than 0.

    Raises:
        CheckpointError: if it is damaged, or holds something other than tensors.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        is_stream = data[: len(STREAM_START)] == STREAM_START
        described, storages = _stream(data) if is_stream else _archive(data, torch_members(file, num_bytes))
    tensors = _dictionary(described)
    contents = _File(data, storages)
    found = {name: _tensor(name, tensor, contents) for name, tensor in tensors.items()}
    if sum(tensor.nbytes for tensor in found.values()) > 2 * num_bytes:
        raise CheckpointError("its tensors are larger than the file: too many share their numbers")
    return found


def _archive(data: mmap.mmap, found: dict[str, Member]) -> tuple[Any, dict[str, range]]:
    pickle, order = found.get("data.pkl"), found.get("byteorder")
    if pickle is None:
        raise CheckpointError("it is an archive, but none of torch's: data.pkl is missing")
    if order is not None and data[order.start : order.start + min(order.size, 8)] != b"little":
        raise CheckpointError("its numbers are in the byte order of another machine; save it on this one")
    if pickle.size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"its description has {pickle.size:,} bytes, and at most {MAX_PICKLE_BYTES:,} are read; save its "
            "state_dict alone"
        )
    described, end = unpickled(data[pickle.start : pickle.start + pickle.size])
    if end != pickle.size:
        raise CheckpointError("there is more behind its description")
    prefix = "data/"
    return described, {
        name.removeprefix(prefix): range(member.start, member.start + member.size)
        for name, member in found.items()
        if name.startswith(prefix)
    }


def _stream(data: mmap.mmap) -> tuple[Any, dict[str, range]]:
    start = data[: MAX_PICKLE_BYTES + (1 << 16)]
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
        count = int.from_bytes(data[position : position + 8], "little")
        if key not in sizes or count != sizes[key].num_stored:
            raise CheckpointError(f"the storage {shown(key)} is damaged")
        size = count * _itemsize(sizes[key].dtype)
        position += 8 + size
        storages[key] = range(position - size, position)
    if position != len(data):
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


def _tensor(name: str, described: Described, file: _File) -> Tensor:
    storage, dtype = described.storage, described.storage.dtype
    if isinstance(dtype, str):
        raise CheckpointError(f"the tensor {shown(name)} holds {shown(dtype)}, which is no type of weights")
    place = file.storages.get(storage.key)
    if place is None or len(place) != storage.num_stored * dtype.itemsize:
        raise CheckpointError(f"the numbers of the tensor {shown(name)} are missing or cut off")
    count = _product(described.shape)
    if count == 0:
        return torch.empty(described.shape, dtype=dtype)
    last = described.offset + sum(
        (side - 1) * step for side, step in zip(described.shape, described.stride, strict=True)
    )
    if last >= storage.num_stored or count > storage.num_stored:
        raise CheckpointError(
            f"the tensor {shown(name)} of shape {shown(described.shape)} needs more numbers than the file has for it "
            "(an expanded tensor? save a contiguous copy)"
        )
    if place.start % dtype.itemsize:
        bytes_ = bytearray(file.data[place.start : place.stop])
        whole = torch.frombuffer(bytes_, dtype=dtype)
    else:
        whole = torch.frombuffer(file.data, dtype=dtype, count=storage.num_stored, offset=place.start)
    return whole.as_strided(described.shape, described.stride, described.offset)


def _itemsize(dtype: torch.dtype | str) -> int:
    return 1 if isinstance(dtype, str) else dtype.itemsize


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
