"""Reads safetensors files, after a check of the header."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mobileclip.strict import parse_json
from mobileclip.tensor_files.errors import CheckpointError, check_count, shown
from mobileclip.tensor_files.numbers import read_values

_MAX_HEADER_BYTES = 1 << 24
_LENGTH_BYTES = 8
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def looks_like_safetensors(start: bytes, num_bytes: int) -> bool:
    """Return whether a file of `num_bytes` that begins with `start` looks like a safetensors file."""
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    return start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and length + _LENGTH_BYTES <= num_bytes


def read_safetensors(path: Path, num_bytes: int, *, mmap: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and the metadata of the file.

    Raises:
        CheckpointError: if the file is damaged, or contains tensors of an unsupported dtype.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        entries, metadata, start = _checked_header(file, num_bytes)
        try:
            # safetensors checks that shapes and offsets are consistent and cover the file, and memory-maps tensors.
            with safe_open(path, framework="pt") as views:
                if mmap:
                    return {name: views.get_tensor(name) for name in entries}, metadata
                return {name: _tensor(file, entry, start) for name, entry in entries.items()}, metadata
        except (SafetensorError, RuntimeError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"the file is damaged ({shown(str(error))})") from error


def _tensor(file: IO[bytes], entry: dict[str, Any], start: int) -> Tensor:
    shape, (first, _) = entry["shape"], entry["data_offsets"]
    return read_values(file, start + first, math.prod(shape), _TYPES[entry["dtype"]]).reshape(shape)


def _checked_header(file: IO[bytes], num_bytes: int) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Return the header entry of each tensor, the metadata, and the offset of the tensor data in bytes."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(_MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
        raise CheckpointError(
            f"the header has {length:,} bytes in a file of {num_bytes:,}, but the maximum is {_MAX_HEADER_BYTES:,}"
        )
    text = file.read(length)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"the header is damaged: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError("the header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("the metadata have values that are not strings")
    check_count(len(header))
    for name, entry in header.items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in _TYPES:
            raise CheckpointError(
                f"the tensor {shown(name)} has the dtype {shown(kind)}, which is not supported", code="not_weights"
            )
    return header, metadata, _LENGTH_BYTES + length
