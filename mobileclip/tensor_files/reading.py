"""Reads tensor files, and detects the file format from the first bytes, not from the file name."""

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
    """Return the tensors of a file by name, and the metadata, which are empty for PyTorch files.

    The function executes no code from the file: `torch.load(weights_only=True)` reads PyTorch files. If a training
    checkpoint nests the weights, the function reads the first of `ema`, `state_dict`, `model` and similar keys.

    Args:
        path: path of the file.
        sha256: expected SHA-256 of the file, in hexadecimal; None to accept any file.
        mmap: whether to memory-map the file, to load the data of a tensor on first use. Changes to the file then change
            the tensors, and truncating the file crashes the process.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if the file is damaged, has a different SHA-256 than `sha256`, or contains anything other than
            dense tensors.
    """
    if not path.is_file():
        what = "expected a weights file, but found a folder" if path.is_dir() else "no checkpoint"
        raise FileNotFoundError(f"{what} at {path}")
    check_sha256(path, sha256)
    try:
        return _read(path, mmap=mmap)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used as a checkpoint: {error}", code=error.code) from error


def check_sha256(path: Path, expected: str | None) -> None:
    """Raise if a file does not have the expected SHA-256.

    Args:
        path: path of the file.
        expected: expected SHA-256, in hexadecimal; None to accept any file.

    Raises:
        CheckpointError: if the digests differ.
    """
    found = None if expected is None else file_sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path} is not the file that was expected: the SHA-256 is {found}, not {expected}; download the file "
            "again, and do not use the file if the error persists",
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
            "the file is damaged, or not a safetensors or torch.save file; download or save the file again"
        )
    for name in tensors:
        if len(name) > _MAX_NAME:
            raise CheckpointError(
                f"the tensor {shown(name)} has a name of {len(name):,} characters, but the limit is {_MAX_NAME}"
            )
    return tensors, metadata
