"""Whether the numbers in a checkpoint are weights: of the right kind, finite, and within what float32 holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mobileclip.tensor_files.errors import CheckpointError, shown

_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_numbers(source: str | Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise unless every tensor holds what the model has in its place.

    Args:
        source: where they are from, for the message.
        tensors: by name.
        dtypes: the model's, by name.

    Raises:
        CheckpointError: naming the first tensor that holds whole numbers in place of weights, or the other way round;
            that is complex; or with numbers that are not finite in float32.
    """
    for name, tensor in tensors.items():
        if dtypes[name].is_floating_point != tensor.dtype.is_floating_point or not (
            tensor.dtype.is_floating_point or tensor.dtype in _COUNTS
        ):
            raise CheckpointError(
                f"{source}: the tensor {shown(name)} holds {_spoken(tensor.dtype)}, and the model has "
                f"{_spoken(dtypes[name])} there; the checkpoint is of another model, or broken"
            )
        if tensor.dtype.is_floating_point and not _is_finite(tensor):
            raise CheckpointError(
                f"{source}: the tensor {shown(name)} holds NaN or infinite values; the checkpoint is broken"
            )


def check_cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Raise unless all weights of a model stay finite in another precision.

    Raises:
        ValueError: naming the first that does not.
    """
    largest = torch.finfo(dtype).max
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = tensor.aminmax()
        if max(-float(low), float(high)) > largest:
            raise ValueError(
                f"the weight {shown(name)} is beyond what {_spoken(dtype)} holds; choose bfloat16 or float32"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(low.float().isfinite()) and bool(high.float().isfinite())


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
