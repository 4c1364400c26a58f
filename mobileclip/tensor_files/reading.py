"""One reader for every file of tensors, whatever its name: the format is found from its first bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from mobileclip.tensor_files.errors import CheckpointError, shown
from mobileclip.tensor_files.safetensors_file import looks_like_safetensors, read_safetensors
from mobileclip.tensor_files.torch_file import STREAM_START, read_torch

_MAX_NAME = 512
_PREFIX = "module."
_ZIP_START = b"PK\x03\x04"
_CHUNK_BYTES = 1 << 20


def read_tensors(path: Path, *, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata (safetensors alone has any).

    Nothing in a file is executed: PyTorch's files are read by a reader that makes tensors and calls nothing. Of
    training checkpoints that nest the weights, the part `state_dict` is taken; the prefix `module.` of distributed
    training is dropped.

    Args:
        path: the file.
        sha256: the digest that the file must have, in hexadecimal; None for any.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, is another than expected, or holds something other than dense tensors
            of numbers; the message says which.
    """
    if not path.is_file():
        what = "a folder, and no file of weights, is" if path.is_dir() else "no checkpoint"
        raise FileNotFoundError(f"{what} at {path}")
    check_sha256(path, sha256)
    try:
        tensors, metadata = _read(path)
        return _named(tensors), metadata
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used as a checkpoint: {error}") from error


def check_sha256(path: Path, expected: str | None) -> None:
    """Raise if a file has another SHA-256 than expected.

    Args:
        path: the file.
        expected: in hexadecimal; None for any.

    Raises:
        CheckpointError: if it has.
    """
    found = None if expected is None else file_sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path} is not the file that was expected: its SHA-256 is {found}, not {expected}; fetch it again, and if "
            "that does not help, do not use it"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(STREAM_START))
    if start.startswith(_ZIP_START) or start == STREAM_START:
        return read_torch(path, num_bytes), {}
    if looks_like_safetensors(start, num_bytes):
        return read_safetensors(path, num_bytes)
    raise CheckpointError(
        "it is damaged, or neither safetensors nor a file that torch.save wrote; fetch or write it again"
    )


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        if len(name) > _MAX_NAME:
            raise CheckpointError(f"the tensor {shown(name)} has a name of {len(name):,} characters")
        named[name.removeprefix(_PREFIX)] = tensor
    if len(named) != len(tensors):
        raise CheckpointError(f"it has tensors that differ in the prefix {_PREFIX!r} alone")
    return named
