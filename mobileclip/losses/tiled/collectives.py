"""Collectives among the processes that share a batch; nothing is sent where there is only one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from collections.abc import Mapping


class Processes:
    """The processes of a group, or one process alone.

    Args:
        group_name: name of the group that the batch is spread over, the same number of pairs to each; None where this
            process has the whole batch.
    """

    def __init__(self, group_name: str | None) -> None:
        self.group: distributed.ProcessGroup | None = None
        self.rank, self.size = 0, 1
        if group_name is not None:
            from torch.distributed import distributed_c10d  # a build of PyTorch may be without

            resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]  # noqa: SLF001
            self.group = resolve(group_name)
            self.rank, self.size = distributed.get_rank(self.group), distributed.get_world_size(self.group)

    def agree(self, facts: Mapping[str, int], error: ValueError | None, device: torch.device) -> None:
        """Raise on every process if one of them has an error, or the facts differ.

        A process that raised alone would leave the others waiting for it in the next exchange.

        Args:
            facts: what must be equal everywhere, by what people read; the same names everywhere.
            error: what is wrong with this process's batch.
            device: where the group exchanges tensors.

        Raises:
            ValueError: this process's error, or one that names the process or the numbers.
        """
        if self.group is None:
            if error is not None:
                raise error
            return
        mine = torch.tensor([int(error is None), *facts.values()], dtype=torch.int64, device=device)
        sound, *columns = self.gather(mine[None]).T.tolist()
        if error is not None:
            raise error
        if not all(sound):
            raise ValueError(f"process {sound.index(0)} of {self.size} refused its batch; its own error says why")
        for name, values in zip(facts, columns, strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"{name} must be equal on all processes, but is {values}, process by process; give all of them "
                    "batches of one size and form, and drop a last one that is smaller"
                )

    def any(self, value: bool, device: torch.device) -> bool:  # noqa: FBT001
        """Return whether `value` is true on any process."""
        if self.group is None:
            return value
        flag = torch.tensor([int(value)], device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, self.group)
        return bool(flag.item())

    def gather(self, local: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of their ranks.

        Shape: local (B, ...) -> (size * B, ...).
        """
        if self.group is None:
            return local
        local = local.contiguous()
        gathered = local.new_empty((self.size * local.shape[0], *local.shape[1:]))
        distributed.all_gather(list(gathered.chunk(self.size)), local, group=self.group)
        return gathered

    def scatter_sum(self, contributions: Tensor) -> Tensor:
        """Return this process's rows of the sum over the processes: how gradients flow back through `gather`.

        Shape: contributions (size * B, ...) -> (B, ...).
        """
        if self.group is None:
            return contributions
        if distributed.get_backend(self.group) == "nccl":
            own = torch.empty_like(contributions.chunk(self.size)[self.rank])
            distributed.reduce_scatter_tensor(own, contributions, group=self.group)
            return own
        distributed.all_reduce(contributions, group=self.group)
        return contributions.chunk(self.size)[self.rank].clone()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, element by element."""
        if self.group is None:
            return values
        total = values.clone()
        distributed.all_reduce(total, group=self.group)
        return total / self.size

    def logsumexp(self, values: Tensor) -> Tensor:
        """Return `log sum exp` over the processes, element by element."""
        if self.group is None:
            return values
        largest = values.clone()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, self.group)
        total = (values - largest).exp_()
        distributed.all_reduce(total, group=self.group)
        return total.log_().add_(largest)
