"""Devices, precisions and CPU threads, chosen in the same way for all commands.

This module inspects and configures the machine before a computation; faster forms of a model are in `inference.forms`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUTO = "auto"
"""The name of the best available device, in specs and flags."""


def pick_device(name: str | torch.device = AUTO, *, local_rank: int = 0) -> torch.device:
    """Return the named device, or the best available device: a CUDA GPU, else Apple's GPU (MPS), else the CPU.

    Args:
        name: device name, such as `cuda:1`, `mps` or `cpu`; `auto` for the best device.
        local_rank: rank of this process on this machine; each process gets its own GPU.

    Raises:
        ValueError: if the device does not exist, or there are fewer GPUs than processes; the message lists the
            available devices.
    """
    import torch

    if str(name) == AUTO:
        return torch.device(_best(local_rank))
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # fails on `meta`, which stores no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"\. |\n", str(error))[0]
        there = ", ".join(dict.fromkeys((*all_devices(), "cpu")))
        raise ValueError(
            f"the device {str(name)!r} is not available ({reason}); available: {there}. Omit the device to use the "
            "best device, or pass `--device cpu`"
        ) from None
    return device


def all_devices() -> tuple[str, ...]:
    """Return the names of all devices of the best kind: every CUDA GPU, else Apple's GPU, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return ("mps",) if torch.backends.mps.is_available() else ("cpu",)


def in_float64(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64: on its device, or on the CPU if the device has no float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def has_float64(device: torch.device) -> bool:
    """Return whether the device supports float64, unlike Apple's GPUs."""
    return device.type != "mps"


def _best(local_rank: int) -> str:
    devices = all_devices()
    if not devices[0].startswith("cuda"):
        return devices[0]
    if local_rank >= len(devices):
        raise ValueError(
            f"process {local_rank} of this machine has no GPU, since the number of GPUs is {len(devices)}; start one "
            f"process per GPU: torchrun --nproc-per-node {len(devices)} ..."
        )
    return devices[local_rank]


Precision = Literal["float32", "float16", "bfloat16", "int8", "int8-weights"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions of an exported model; `int8-weights` stores weights in int8 and computes in float32."""

WidePrecision = Literal["float32", "bfloat16"]
WIDE_PRECISIONS: tuple[WidePrecision, ...] = get_args(WidePrecision)
"""Precisions with the range of float32, for running models and teachers in PyTorch."""

TrainingPrecision = Literal[WidePrecision, "float16"]
TRAINING_PRECISIONS: tuple[TrainingPrecision, ...] = get_args(TrainingPrecision)
"""Precisions of a training step under autocast."""

FastPrecision = Literal["float32", "bfloat16", "int8"]
FAST_PRECISIONS: tuple[FastPrecision, ...] = get_args(FastPrecision)
"""Precisions that `optimize` may use if they are accurate enough; only convolutions and linear layers use int8."""

StoredPrecision = Literal["bfloat16", "int8"]
"""Precisions of the embeddings stored in compact records."""


def dtype_of(precision: Precision | TrainingPrecision) -> torch.dtype:
    """Return the dtype of a floating-point precision: float32, float16 or bfloat16.

    Casting weights to bfloat16 halves their memory and is as accurate as autocast: with ViT-B/32, the embeddings of
    either method are within 8e-5 (1 - cosine) of float32. The cast is faster on GPUs and on processors with bfloat16
    instructions; with only AVX2, float32 is five times as fast.

    Raises:
        KeyError: if the precision is not float32, float16 or bfloat16.
    """
    import torch

    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def threads_or_default(count: int | None) -> int:
    """Return the number of threads for a runtime: `count`, or by default PyTorch's number of threads.

    Args:
        count: number of threads, at least 1; None for `torch.get_num_threads()`.

    Raises:
        ValueError: if `count` is less than 1.
    """
    import torch

    if count is None:
        return torch.get_num_threads()
    if count < 1:
        raise ValueError(f"num_threads is {count}, expected at least 1, or None for PyTorch's number of threads")
    return count


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with `count` threads within the context, then with the previous number.

    Args:
        count: number of threads, at least 1; None for the current number.
    """
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
