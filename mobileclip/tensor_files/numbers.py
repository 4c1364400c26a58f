"""Reads numbers from a file, always as a copy, so that later changes of the file do not change the numbers."""

from __future__ import annotations

from typing import IO

import torch
from torch import Tensor, nn

from mobileclip.tensor_files.errors import CheckpointError


def read_numbers(file: IO[bytes], start: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return numbers from a file as a copy, never as a view of the file.

    Shape:
        `(count,)`.

    Args:
        file: file, opened for reading.
        start: position of the first number, in bytes.
        count: number of values.
        dtype: dtype of the values.

    Raises:
        CheckpointError: if the file ends before the last number.
    """
    content = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    file.seek(start)
    if file.readinto(content.numpy().data) != len(content):  # type: ignore[attr-defined]  # what is opened has it
        raise CheckpointError("it ends in the middle of its numbers: it was cut off, or another program is writing it")
    return content.view(dtype)


def own_numbers(module: nn.Module) -> None:
    """Copy every tensor of a module that another library loaded, since the tensors may be views of a file.

    The function copies one tensor at a time; shared parameters stay shared.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
