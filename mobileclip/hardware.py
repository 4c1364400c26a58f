"""Devices, precisions and CPU threads: one choice for every command.

What a command asks of a machine before it computes anything belongs here; faster forms of a model, in
`inference.forms`.
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
"""The name, in specs and flags, of the best device that is there."""


def pick_device(name: str | torch.device = AUTO, *, local_rank: int = 0) -> torch.device:
    """Return the device of that name, or the best one there is: a CUDA GPU, else Apple's (MPS), else the CPU.

    Args:
        name: such as `cuda:1`, `mps` or `cpu`; `auto` for the best one.
        local_rank: number of this process among those of this machine, each of which gets a GPU of its own.

    Raises:
        ValueError: if there is no such device, or fewer GPUs than processes; the message says what there is.
    """
    import torch

    if str(name) == AUTO:
        return torch.device(_best(local_rank))
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # what `meta` cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"\. |\n", str(error))[0]
        there = ", ".join(dict.fromkeys((*all_devices(), "cpu")))
        raise ValueError(
            f"there is no device {str(name)!r} here ({reason}); there are: {there}. Leave the choice out for the best "
            "of them, or give `--device cpu`"
        ) from None
    return device


def all_devices() -> tuple[str, ...]:
    """Return the names of all devices of the best kind: every CUDA GPU, else Apple's, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return ("mps",) if torch.backends.mps.is_available() else ("cpu",)


def in_float64(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64: on its device, or on the CPU where the device has no float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def has_float64(device: torch.device) -> bool:
    """Return whether the device computes in float64, which Apple's GPUs do not."""
    return device.type != "mps"


def _best(local_rank: int) -> str:
    devices = all_devices()
    if not devices[0].startswith("cuda"):
        return devices[0]
    if local_rank >= len(devices):
        raise ValueError(
            f"process {local_rank} of this machine has no GPU of its own, there are {len(devices)}; start one process "
            f"per GPU: torchrun --nproc-per-node {len(devices)} ..."
        )
    return devices[local_rank]


Precision = Literal["float32", "float16", "bfloat16", "int8", "int8-weights"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions of an exported model; `int8-weights` stores weights in int8 and computes in float32."""

WidePrecision = Literal["float32", "bfloat16"]
WIDE_PRECISIONS: tuple[WidePrecision, ...] = get_args(WidePrecision)
"""Precisions in which PyTorch runs models and teachers; both have the range of float32."""

TrainingPrecision = Literal[WidePrecision, "float16"]
TRAINING_PRECISIONS: tuple[TrainingPrecision, ...] = get_args(TrainingPrecision)
"""Precisions of a training step under autocast."""

FastPrecision = Literal["float32", "bfloat16", "int8"]
FAST_PRECISIONS: tuple[FastPrecision, ...] = get_args(FastPrecision)
"""Precisions that `optimize` may use where they are exact enough; int8 in convolutions and linear layers only."""

StoredPrecision = Literal["bfloat16", "int8"]
"""Precisions of the embeddings stored in compact records."""


def dtype_of(precision: Precision | TrainingPrecision) -> torch.dtype:
    """Return the type of a floating-point precision: float32, float16 or bfloat16.

    Casting weights to bfloat16 is as exact as autocast and keeps half the bytes: with ViT-B/32 both are within 8e-5
    (1 - cosine) of float32. It pays on GPUs, and on processors that compute in bfloat16; with AVX2 alone, float32 is
    five times as fast.

    Raises:
        KeyError: if it is none of these.
    """
    import torch

    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def threads_or_default(count: int | None) -> int:
    """Return how many threads a runtime is to take: those that were asked for, or as many as PyTorch has.

    Args:
        count: at least 1; None for PyTorch's own, `torch.get_num_threads()`.

    Raises:
        ValueError: if it is less than 1.
    """
    import torch

    if count is None:
        return torch.get_num_threads()
    if count < 1:
        raise ValueError(f"num_threads is {count}, expected at least 1, or None for as many as PyTorch has")
    return count


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads in this thread, then with as many as before.

    Args:
        count: at least 1; None for as many as it has.
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
