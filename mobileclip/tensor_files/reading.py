"""Reads tensor files of any name, and detects the format from the first bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from mobileclip.tensor_files.errors import CheckpointError, shown
from mobileclip.tensor_files.safetensors_file import looks_like_safetensors, read_safetensors
from mobileclip.tensor_files.torch_file import ARCHIVE_START, STREAM_START, read_torch

_MAX_NAME = 512
_CHUNK_BYTES = 1 << 20


def read_tensors(
    path: Path, *, sha256: str | None = None, mmap: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata, which only safetensors files have.

    The function executes nothing in a file: it reads PyTorch's files by `torch.load(weights_only=True)`. If a training
    checkpoint nests the weights, it takes the first of `ema`, `state_dict`, `model` and similar keys.

    Args:
        path: the file.
        sha256: digest that the file must have, in hexadecimal; None to accept any file.
        mmap: whether to return tensors that are views of the file. Little is read and no memory is used before the
            tensors are used. A change of the file changes the tensors, and a truncation of the file ends the process.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if the file is damaged, has another digest than expected, or holds something other than dense
            tensors of numbers; the message states the problem.
    """
    if not path.is_file():
        what = "a folder instead of a weights file is" if path.is_dir() else "no checkpoint"
        raise FileNotFoundError(f"{what} at {path}")
    check_sha256(path, sha256)
    try:
        return _read(path, mmap=mmap)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used as a checkpoint: {error}", code=error.code) from error


def check_sha256(path: Path, expected: str | None) -> None:
    """Raise if a file does not have the expected SHA-256.

    Args:
        path: the file.
        expected: expected digest, in hexadecimal; None to accept any file.

    Raises:
        CheckpointError: if the digests differ.
    """
    found = None if expected is None else file_sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path} is not the file that was expected: its SHA-256 is {found}, not {expected}; fetch it again, and if "
            "that does not help, do not use it",
            code="digest",
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, *, mmap: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(STREAM_START))
    metadata: dict[str, str] = {}
    if start.startswith(ARCHIVE_START) or start == STREAM_START:
        tensors = read_torch(path, is_archive=start != STREAM_START, mmap=mmap)
    elif looks_like_safetensors(start, num_bytes):
        tensors, metadata = read_safetensors(path, num_bytes, mmap=mmap)
    else:
        raise CheckpointError(
            "it is damaged, or is neither a safetensors file nor a file of torch.save; fetch or write the file again"
        )
    for name in tensors:
        if len(name) > _MAX_NAME:
            raise CheckpointError(f"the tensor {shown(name)} has a name of {len(name):,} characters")
    return tensors, metadata
