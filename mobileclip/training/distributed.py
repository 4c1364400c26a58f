"""The processes of a run, and prefetching of batches to the device."""

from __future__ import annotations

import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import count, islice
from typing import Any, Generic, TypeVar, cast

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mobileclip.data import Batch
from mobileclip.hardware import AUTO, pick_device
from mobileclip.processes import DistributedInfo, portable_error, this_process
from mobileclip.terminal.interruption import postponed

T = TypeVar("T")

COLLECTIVE_SECONDS = 1800.0
"""Default timeout of a collective in seconds; rank 0's own work, such as evaluation, may take longer."""

# Messages of gloo, NCCL and the store about processes that are late or gone.
_LATE = re.compile(
    r"timed? ?out|timeout|connection closed by peer|connection reset|broken pipe|wait_?for_?clients", re.IGNORECASE
)
# Timeout for rank 0's own work, such as an evaluation. If that process ends, its store closes, which ends
# the wait.
_ALONE = timedelta(days=1)
_CONNECTING_SECONDS, _BETWEEN_LOOKS_SECONDS = 5.0, 0.2


def _device(value: str | torch.device) -> torch.device:
    return torch.device(value)


@attrs.frozen(kw_only=True)
class World:
    """This process and its process group in a run.

    Args:
        rank: rank of this process, from 0; process 0 writes files and shows progress.
        size: number of processes.
        device: device of this process.
        group: the process group; None for a single process.
        store: key-value store on which the other processes wait while rank 0 works alone; without a store,
            the timeout of the process group applies.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = attrs.field(default=torch.device("cpu"), converter=_device)
    group: dist.ProcessGroup | None = None
    store: Store | None = None
    _turns: Iterator[int] = attrs.field(factory=count, init=False, repr=False, eq=False)

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes files and shows progress."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the processes, bit-identical in all processes."""
        if self.group is None:
            return values
        # The sum is in the order of the ranks, which an all-reduce does not guarantee.
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous(), group=self.group)
        return torch.stack(parts).mean(dim=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Return rank 0's result of `make` in all processes, or raise the error of `make` in all of them.

        The other processes wait for up to a day, or until rank 0 has ended.

        Args:
            make: function that only rank 0 calls; the returned value must be picklable.
        """
        if self.group is None:
            return make()
        outcome: list[Any] = [None]
        turn = f"turn/{next(self._turns)}"
        if self.is_first:
            outcome[0] = _result(make)
            if self.store is not None:
                self.store.set(turn, "done")
        elif self.store is not None:
            self.store.wait([turn], _ALONE)
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return cast("T", outcome[0])

    def broadcast(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors, on the CPU, in all processes; other processes can pass an empty dict."""
        if self.group is None:
            return tensors
        kinds = self.from_first(lambda: {name: (value.shape, value.dtype) for name, value in tensors.items()})
        received = {}
        for name, (shape, dtype) in kinds.items():
            # If the group communicates through GPUs, only one tensor at a time is on the GPU.
            own = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            there = own.to(self.device).contiguous()
            dist.broadcast(there, src=0, group=self.group)
            received[name] = there.cpu()
        return received

    def share(self, batch_size: int) -> int:
        """Return the number of samples per batch in this process.

        Raises:
            ValueError: if the batch size is not a multiple of the number of processes.
        """
        if batch_size % self.size:
            raise ValueError(
                f"a batch of {batch_size} cannot be divided among {self.size} processes; choose a multiple of "
                f"{self.size}"
            )
        return batch_size // self.size

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Postpone signals during the block if other processes may be waiting for this process."""
        with nullcontext() if self.group is None else postponed():
            yield


@contextmanager
def process_group(
    device: str | torch.device = AUTO, *, collective_seconds: float = COLLECTIVE_SECONDS
) -> Iterator[World]:
    """Join the processes that `torchrun` or `srun` started; without a launcher, use a single process.

    Args:
        device: name of a device; `auto` for this process's GPU, or the best available device.
        collective_seconds: timeout of every collective operation, in seconds.

    Raises:
        TimeoutError: if another process is late or dead; the message names the collective operation. With NCCL, PyTorch
            ends the process and logs the collective operation.
        ValueError: if the device does not exist, if this machine has more processes than GPUs and `device` is
            `auto`, or if several processes would use Apple's GPU, which has no collectives.
    """
    process = this_process()
    chosen = pick_device(device, local_rank=process.local_rank)
    if chosen.type == "mps" and process.size > 1:
        if str(device) != AUTO:
            raise ValueError(
                "only one process can train on Apple's GPU; start the run without torchrun, or pass --device cpu"
            )
        chosen = torch.device("cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if process.size == 1:
        yield World(device=chosen)
        return
    try:
        store = _meet(process, timedelta(seconds=collective_seconds))
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=process.rank,
            world_size=process.size,
            timeout=timedelta(seconds=collective_seconds),
        )
        turns = PrefixStore("turns", store)
        yield World(rank=process.rank, size=process.size, device=chosen, group=dist.group.WORLD, store=turns)
    except RuntimeError as error:
        if not _is_late(error):
            raise
        raise TimeoutError(
            f"process {process.rank} of {process.size} lost another process or waited too long for it (timeout "
            f"{collective_seconds:g} s), in {traceback.extract_tb(error.__traceback__)[-1].name}: {error}. Start all "
            "processes again; the run resumes from its last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(process: DistributedInfo, within: timedelta) -> Store:
    if process.init_method is None:
        found = rendezvous("env://", timeout=within)
    else:
        found = rendezvous(process.init_method, rank=process.rank, world_size=process.size, timeout=within)
    store: Store = next(iter(found))[0]
    return _own_store(store, process, within) if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else store


def _own_store(board: Store, process: DistributedInfo, within: timedelta) -> Store:
    """Return a new store for this attempt; the launcher's store may still have values from before a restart.

    Args:
        board: the launcher's store, for exchanging the new store's address.
        process: rank of this process, number of processes, and rendezvous address.
        within: timeout for connecting to the new store.
    """
    if process.is_first:
        host = os.environ["MASTER_ADDR"]
        store = TCPStore(host, 0, process.size, is_master=True, timeout=within, wait_for_workers=False)
        board.set("meeting", f"{host}:{store.port}")
        return store
    deadline = time.monotonic() + within.total_seconds()
    while True:
        host, _, port = board.get("meeting").decode().rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECTING_SECONDS).close()
        except OSError as error:
            # The address is from an earlier attempt: no process listens there any more, and a new address will follow.
            if time.monotonic() > deadline:
                raise RuntimeError(f"timed out: no process listens at {host}:{port}") from error
            time.sleep(_BETWEEN_LOOKS_SECONDS)
        else:
            return TCPStore(host, int(port), process.size, timeout=within, wait_for_workers=False)


def _is_late(error: RuntimeError) -> bool:
    return isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or _LATE.search(str(error)) is not None


def _result(make: Callable[[], T]) -> T | Exception:
    """Return the result of `make`, or its error in picklable form."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - it is raised in all processes
        return portable_error(error)


BatchType = TypeVar("BatchType", bound=Batch)


@attrs.frozen
class _OnTheWay(Generic[BatchType]):
    """A batch during its copy to the device, or an error instead of a batch.

    Args:
        batch: a batch on the device, complete after the event `copied`; None at the end of the source.
        copied: CUDA event recorded after the copy; None if there is nothing to wait for.
        error: error of the source, exception of a signal, or KeyboardInterrupt; None without an error.
    """

    batch: BatchType | None = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None


class Prefetcher(Generic[BatchType]):
    """Copies the batches of a source to a device, one batch ahead.

    `advance` waits for the next batch and starts its copy while the device computes on the current batch; CUDA copies
    use pinned memory and a separate stream. The prefetcher reads at most `count` batches.

    Args:
        source: iterator of batches.
        count: maximum number of batches.
        device: target of the copies.
        waiting: function that returns a context manager for each wait for the source; the context may raise a signal's
            exception.
    """

    def __init__(
        self,
        source: Iterator[BatchType],
        *,
        count: int,
        device: torch.device,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._source = islice(source, count)
        self._device = device
        self._waiting = waiting
        is_ahead = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_ahead else None  # type: ignore[no-untyped-call]
        self._next: _OnTheWay[BatchType] | None = None
        self.seconds_waiting = 0.0
        """Seconds that this process has waited for batches since the last `take` began."""

    def advance(self) -> None:
        """Wait for the next batch and start the copy of the batch; call this method after queueing the work of a step.

        If the source fails or a signal arrives, the next `take` raises the error.
        """
        if self._next is not None:
            return
        started = time.perf_counter()
        self._next = self._fetch()
        self.seconds_waiting += time.perf_counter() - started

    @property
    def has_failed(self) -> bool:
        """Whether the next `take` is certain to raise an error of the source."""
        return self._next is not None and isinstance(self._next.error, Exception)

    def take(self) -> BatchType | None:
        """Return the next batch on the device; None at the end of the source.

        Raises:
            Exception: an error of the source.
            Interrupted: if a signal interrupted the wait.
        """
        started = time.perf_counter()
        batch = self._copied()
        self.seconds_waiting = time.perf_counter() - started
        return batch

    def _fetch(self) -> _OnTheWay[BatchType]:
        try:
            with self._waiting():
                batch = next(self._source, None)
        except BaseException as error:  # noqa: BLE001 - `take` raises it
            return _OnTheWay(error=error)
        if batch is None:
            return _OnTheWay()
        if self._stream is None:
            return _OnTheWay(batch=batch.to(self._device))
        with torch.cuda.stream(self._stream):
            # PyTorch reuses page-locked memory only after the copy from it has ended.
            there = batch.pin_memory().to(self._device, non_blocking=True)
            return _OnTheWay(batch=there, copied=self._stream.record_event())

    def _copied(self) -> BatchType | None:
        found, self._next = self._next or self._fetch(), None
        if found.error is not None:
            raise found.error
        if found.batch is None or found.copied is None:
            return found.batch
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(found.copied)
        # The memory belongs to the copying stream, which must not reuse it before the computing stream has used it.
        for tensor in found.batch.tensors():
            tensor.record_stream(computing)
        return found.batch
