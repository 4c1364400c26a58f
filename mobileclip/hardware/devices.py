"""Device selection: `auto`, `cpu`, `cuda:1`, `mps`; one choice for every command."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUTO = "auto"
"""What specs and flags say for: the best device that is there."""


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
