"""Safetensors files, whose header is checked before anything is made of it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mobileclip.strict import parse_json
from mobileclip.tensor_files.errors import CheckpointError, check_count, shown

_MAX_HEADER_BYTES = 1 << 24
_LENGTH_BYTES = 8
_TYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})


def looks_like_safetensors(start: bytes, num_bytes: int) -> bool:
    """Return whether a file of so many bytes that starts like this is of the format."""
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    return start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and length + _LENGTH_BYTES <= num_bytes


def read_safetensors(path: Path, num_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata.

    Raises:
        CheckpointError: if it is damaged, or holds a type that no weights have.
    """
    from safetensors import SafetensorError, safe_open

    metadata = _checked_header(path, num_bytes)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except (SafetensorError, RuntimeError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"it is damaged ({shown(str(error))})") from error


def _checked_header(path: Path, num_bytes: int) -> dict[str, str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(_MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
            raise CheckpointError(
                f"its header has {length:,} bytes, and at most {_MAX_HEADER_BYTES:,} of the {num_bytes:,} are read"
            )
        text = file.read(length)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"its header is damaged: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is no table of tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("its metadata holds more than texts")
    check_count(len(header))
    for name, entry in header.items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in _TYPES:
            raise CheckpointError(f"the tensor {shown(name)} holds {shown(kind)}, which is no type of weights")
    return metadata
