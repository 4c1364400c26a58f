"""From the bytes of a file to numbers: always a copy, so that nothing done to the file later changes them."""

from __future__ import annotations

from typing import IO

import torch
from torch import Tensor, nn

from mobileclip.tensor_files.errors import CheckpointError


def read_numbers(file: IO[bytes], start: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return numbers of a file in memory of their own, never a view of the file.

    Shape:
        `(count,)`.

    Args:
        file: opened for reading.
        start: start of the first number, in bytes.
        count: of numbers.
        dtype: dtype of them.

    Raises:
        CheckpointError: if the file ends before them.
    """
    content = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    file.seek(start)
    if file.readinto(content.numpy().data) != len(content):  # type: ignore[attr-defined]  # what is opened has it
        raise CheckpointError("it ends in the middle of its numbers: it was cut off, or is being written")
    return content.view(dtype)


def own_numbers(module: nn.Module) -> None:
    """Copy every tensor of a module that another library loaded, whose tensors may be views of a file.

    One is copied at a time; parameters that are shared stay shared.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
