"""Tensors in a file that torch wrote, row by row, without running the pickle that describes them.

`torch.load(weights_only=True)` takes twice the time of a record, and a file of 700 bytes keeps it busy for ever.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobileclip.data.samples.limits import DIRECTORY_BYTES
from mobileclip.data.samples.pickles import Described, unpickled
from mobileclip.data.samples.zips import torch_members
from mobileclip.data.skips import BadSampleError

# The numbers of bfloat16, which numpy has not, are taken as they lie in the file.
_NUMBERS: dict[torch.dtype | str, str] = {
    torch.bfloat16: "<u2",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.float64: "<f8",
}
# Two arrays take some 250 bytes.
_MAX_PICKLE_BYTES = 1 << 14


class TorchRows:
    """Embeddings in a dictionary of 2-d tensors that torch saved, read row by row.

    Args:
        data: the file, uncompressed; it is damaged or not as a whole, and was checked before. It holds no more than it
            has bytes: files in it that are compressed are refused.

    Raises:
        ValueError: if it is none, or holds something else.
    """

    def __init__(self, data: bytes) -> None:
        found = torch_members(io.BytesIO(data), len(data), directory_bytes=DIRECTORY_BYTES)
        files = {name: memoryview(data)[one.start : one.start + one.size] for name, one in found.items()}
        if not {"data.pkl", "byteorder"} <= files.keys():
            raise ValueError("it is no file of torch's")
        order, described = bytes(files["byteorder"]), bytes(files["data.pkl"])
        if order != b"little" or len(described) > _MAX_PICKLE_BYTES:
            raise ValueError("its numbers or its description are of another kind")
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, tensor in _described(described).items():
            numbers = files.get(f"data/{tensor.storage.key}")
            if numbers is None:
                raise ValueError("a tensor has no numbers")
            self._arrays[name] = _rows(np.frombuffer(numbers, _NUMBERS[tensor.storage.dtype]), tensor)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name: (number of rows, dim)."""
        return {name: array.shape for name, array in self._arrays.items()}

    def row(self, name: str, index: int) -> npt.NDArray[np.float32]:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if it holds NaN or infinity.
        """
        stored = self._arrays[name][index]
        row: npt.NDArray[np.float32]
        if stored.dtype == np.uint16:
            row = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, which is noticed
                row = stored.astype(np.float32)
        if not np.isfinite(row).all():
            raise BadSampleError("not_finite", f"row {index} of {name} holds NaN or infinity")
        return row


def _rows(numbers: npt.NDArray[Any], tensor: Described) -> npt.NDArray[Any]:
    """Return a tensor as a view of its storage, having looked that it lies within."""
    if len(tensor.shape) != 2:
        raise ValueError("it holds something else than 2-d tensors of embeddings")
    (count, dim), (down, right) = tensor.shape, tensor.stride
    last = tensor.offset + (count - 1) * down + (dim - 1) * right if count and dim else -1
    if len(numbers) != tensor.storage.num_stored or last >= len(numbers):
        raise ValueError("a tensor is cut off")
    if last < 0:
        return np.empty((count, dim), numbers.dtype)
    strides = (down * numbers.itemsize, right * numbers.itemsize)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], (count, dim), strides, writeable=False)


@lru_cache(maxsize=64)  # samples of a data set have one description, or few
def _described(pickle: bytes) -> Mapping[str, Described]:
    """Return the tensors that a pickle describes, which is not run.

    Raises:
        ValueError: if it has an instruction that they do not need, or describes something else.
    """
    value, _ = unpickled(pickle)
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Described) and tensor.storage.dtype in _NUMBERS
        for name, tensor in value.items()
    ):
        raise ValueError("it holds something else than a dictionary of tensors of embeddings")
    return value
