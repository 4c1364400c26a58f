"""The processes of a run: one alone, or those that `torchrun` starts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from mobileclip.hardware.devices import AUTO, pick_device

T = TypeVar("T")

COLLECTIVE_SECONDS = 1800.0
"""Long enough for what the first process does alone between two steps: evaluating, saving."""

# What gloo, NCCL and the store that they meet in say of others that do not come, or are gone.
_LATE = re.compile(
    r"timed? ?out|timeout|connection closed by peer|connection reset|broken pipe|wait_?for_?clients", re.IGNORECASE
)


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
def connected(device: str | torch.device = AUTO, *, collective_seconds: float = COLLECTIVE_SECONDS) -> Iterator[World]:
    """Join the other processes of a run that `torchrun` started, or train alone without it.

    Args:
        device: where to compute; `auto` for the GPU of this process, or the best device where there is none.
        collective_seconds: for which this process waits for the others, wherever they do something together.

    Raises:
        TimeoutError: if the others did not come in time, or are gone.
        ValueError: if there is no such device, there are more processes than GPUs on this machine and no device was
            given, or several processes are to compute on Apple's GPU, which they cannot talk from.
    """
    local_rank, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, local_rank=local_rank)
    if chosen.type == "mps" and size > 1:
        if str(device) != AUTO:
            raise ValueError("one process alone trains on Apple's GPU; start it without torchrun, or give --device cpu")
        chosen = torch.device("cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(device=chosen)
        return
    within = timedelta(seconds=collective_seconds)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=within)
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen, group=dist.group.WORLD)
    except RuntimeError as error:
        if not _LATE.search(str(error)):
            raise
        raise TimeoutError(
            f"process {os.environ.get('RANK', '0')} of {size} waited for the others in vain (at most "
            f"{collective_seconds:g} s): one has stopped, ended, or takes longer; what it printed says more. Start all "
            "of them again: the run goes on from its last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
