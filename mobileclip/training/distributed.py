"""The processes of a run: one alone, or those that `torchrun` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def _device(value: str | torch.device) -> torch.device:
    return torch.device(value)


@attrs.frozen(kw_only=True)
class World:
    """This process among those that train one model together.

    Args:
        rank: its number, from 0; the first one writes files and shows progress.
        size: number of processes.
        device: where this one computes.
        group: what they talk through; None where one trains alone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = attrs.field(default=torch.device("cpu"), converter=_device)
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the processes, the same to the bit in all of them."""
        if self.group is None:
            return values
        # Summed in the order of the ranks, which an all-reduce doesn't promise.
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous(), group=self.group)
        return torch.stack(parts).mean(dim=0)

    def gather(self, value: T) -> list[T]:
        """Return what every process gave, in the order of their ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.group is not None:
            dist.barrier(group=self.group)


@contextmanager
def connected(device: str | torch.device | None = None) -> Iterator[World]:
    """Join the other processes of a run that `torchrun` started, or train alone without it.

    Args:
        device: where to compute; None for the GPU of this process, or the CPU where there is none.

    Raises:
        ValueError: if there are more processes than GPUs on this machine, and no device was given.
    """
    local_rank, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _own_device(local_rank) if device is None else torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _own_device(local_rank: int) -> torch.device:
    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        return torch.device("cpu")
    if local_rank >= num_gpus:
        raise ValueError(
            f"process {local_rank} of this machine has no GPU of its own, there are {num_gpus}; start one process per "
            f"GPU: torchrun --nproc-per-node {num_gpus} ..."
        )
    return torch.device("cuda", local_rank)
