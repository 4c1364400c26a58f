"""Reads tensor data from a file into memory, so that later changes to the file do not change the tensors."""

from __future__ import annotations

from typing import IO

import torch
from torch import Tensor, nn

from mobileclip.tensor_files.errors import CheckpointError


def read_values(file: IO[bytes], start: int, count: int, dtype: torch.dtype) -> Tensor:
    """Read values at a position of a file into a new tensor, which shares no memory with the file.

    Shape:
        `(count,)`.

    Args:
        file: file, opened for reading in binary mode.
        start: offset of the first value, in bytes.
        count: number of values.
        dtype: dtype of the values.

    Raises:
        CheckpointError: if the file ends before the last value.
    """
    content = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    file.seek(start)
    if file.readinto(content.numpy().data) != len(content):  # type: ignore[attr-defined]  # binary files have it
        raise CheckpointError(
            "the file ends in the middle of a tensor; the file is truncated, or another program is writing the file"
        )
    return content.view(dtype)


def clone_tensors(module: nn.Module) -> None:
    """Copy every parameter and buffer of another library's module, because the data may be memory-mapped.

    The function replaces one tensor at a time; shared parameters stay shared.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
