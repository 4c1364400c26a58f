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
from mobileclip.processes import ProcessPlace, portable_error, this_process
from mobileclip.terminal.interruption import postponed

T = TypeVar("T")

COLLECTIVE_SECONDS = 1800.0
"""Long enough for the slowest step; what the first process does alone, evaluating and reading, is not counted."""

# What gloo, NCCL and the store that they meet in say of others that do not come, or are gone.
_LATE = re.compile(
    r"timed? ?out|timeout|connection closed by peer|connection reset|broken pipe|wait_?for_?clients", re.IGNORECASE
)
# For what the first process does alone, such as an evaluation; its end closes the store, which ends the wait.
_ALONE = timedelta(days=1)
_CONNECTING_SECONDS, _BETWEEN_LOOKS_SECONDS = 5.0, 0.2


def _device(value: str | torch.device) -> torch.device:
    return torch.device(value)


@attrs.frozen(kw_only=True)
class World:
    """This process and the process group of a run.

    Args:
        rank: number of this process, from 0; process 0 writes files and shows progress.
        size: number of processes.
        device: device of this process.
        group: the process group; None for a single process.
        store: on which the others wait for the first process's own work; without a store, the usual timeout applies.
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
        """Return the mean of `values` over the processes, the same to the bit in all of them."""
        if self.group is None:
            return values
        # Summed in the order of the ranks, which an all-reduce doesn't promise.
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
        """Return the first process's result of `make` in all processes; an error there is raised in all of them.

        The others wait for up to a day, or until the first process has ended.

        Args:
            make: called in the first process only; returns a picklable value.
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
        """Return the tensors of the first process, on the CPU, whatever the others give."""
        if self.group is None:
            return tensors
        kinds = self.from_first(lambda: {name: (value.shape, value.dtype) for name, value in tensors.items()})
        received = {}
        for name, (shape, dtype) in kinds.items():
            # Where the group talks through GPUs, one tensor at a time is there.
            own = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            there = own.to(self.device).contiguous()
            dist.broadcast(there, src=0, group=self.group)
            received[name] = there.cpu()
        return received

    def share(self, batch_size: int) -> int:
        """Return this process's part of a batch.

        Raises:
            ValueError: if it cannot be divided.
        """
        if batch_size % self.size:
            raise ValueError(
                f"a batch of {batch_size} cannot be divided among {self.size} processes; choose a multiple of "
                f"{self.size}"
            )
        return batch_size // self.size

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Postpone signals in the block where other processes wait for this one."""
        with nullcontext() if self.group is None else postponed():
            yield


@contextmanager
def process_group(
    device: str | torch.device = AUTO, *, collective_seconds: float = COLLECTIVE_SECONDS
) -> Iterator[World]:
    """Join the other processes of a run that `torchrun` or `srun` started, or train alone without them.

    Args:
        device: `auto` for the GPU of this process, or the best available device.
        collective_seconds: timeout of every collective operation.

    Raises:
        TimeoutError: if another process is late or dead; the message names the collective. With NCCL, PyTorch ends the
            process, and logs the collective.
        ValueError: if the device does not exist, this machine has more processes than GPUs and no device was given, or
            several processes would use Apple's GPU, which has no collectives.
    """
    place = this_process()
    chosen = pick_device(device, local_rank=place.local_rank)
    if chosen.type == "mps" and place.size > 1:
        if str(device) != AUTO:
            raise ValueError("one process alone trains on Apple's GPU; start it without torchrun, or give --device cpu")
        chosen = torch.device("cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if place.size == 1:
        yield World(device=chosen)
        return
    try:
        store = _meet(place, timedelta(seconds=collective_seconds))
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=collective_seconds),
        )
        turns = PrefixStore("turns", store)
        yield World(rank=place.rank, size=place.size, device=chosen, group=dist.group.WORLD, store=turns)
    except RuntimeError as error:
        if not _is_late(error):
            raise
        raise TimeoutError(
            f"process {place.rank} of {place.size} waited too long for the others (at most {collective_seconds:g} s), "
            f"in {traceback.extract_tb(error.__traceback__)[-1].name}: {error}. Start all of them again: the run goes "
            "on from its last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(place: ProcessPlace, within: timedelta) -> Store:
    if place.meeting is None:
        found = rendezvous("env://", timeout=within)
    else:
        found = rendezvous(place.meeting, rank=place.rank, world_size=place.size, timeout=within)
    store: Store = next(iter(found))[0]
    return _own_store(store, place, within) if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else store


def _own_store(board: Store, place: ProcessPlace, within: timedelta) -> Store:
    """Return a store for this attempt only, since the launcher's store may have values of an attempt before a restart.

    Args:
        board: the launcher's store, for the new store's address.
        place: rank and size of this process.
        within: timeout.
    """
    if place.is_first:
        host = os.environ["MASTER_ADDR"]
        store = TCPStore(host, 0, place.size, is_master=True, timeout=within, wait_for_workers=False)
        board.set("meeting", f"{host}:{store.port}")
        return store
    deadline = time.monotonic() + within.total_seconds()
    while True:
        host, _, port = board.get("meeting").decode().rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECTING_SECONDS).close()
        except OSError as error:
            # What an earlier attempt has named: nobody listens there any more, and another place will be named.
            if time.monotonic() > deadline:
                raise RuntimeError(f"timed out: nobody listens at {host}:{port}") from error
            time.sleep(_BETWEEN_LOOKS_SECONDS)
        else:
            return TCPStore(host, int(port), place.size, timeout=within, wait_for_workers=False)


def _is_late(error: RuntimeError) -> bool:
    return isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or _LATE.search(str(error)) is not None


def _result(make: Callable[[], T]) -> T | Exception:
    """Return `make`'s result or error in picklable form."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - it is raised in all processes
        return portable_error(error)


BatchType = TypeVar("BatchType", bound=Batch)


@attrs.frozen
class _OnTheWay(Generic[BatchType]):
    """A batch that is being copied, or the error in place of one.

    Args:
        batch: on the device, complete after the event; None at the end of the source.
        copied: the event; None if there is nothing to wait for.
        error: the source's error, a signal, or KeyboardInterrupt.
    """

    batch: BatchType | None = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None


class Feed(Generic[BatchType]):
    """Hands out the batches of a source on a device.

    `advance` waits for the next batch and starts its copy, while the device computes on the current batch; CUDA copies
    use pinned memory and their own stream. The feed reads at most `count` batches.

    Args:
        source: of batches.
        count: number of batches.
        device: target of the copies.
        waiting: context manager around waits for the source; it may raise a signal.
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
        """Since the last `take` began, for which this process waited for batches."""

    def advance(self) -> None:
        """Wait for the next batch, and start its copy; call this after queueing the work of a step.

        The `take` of that batch raises an error of the source, or a signal.
        """
        if self._next is not None:
            return
        started = time.perf_counter()
        self._next = self._fetch()
        self.seconds_waiting += time.perf_counter() - started

    @property
    def has_failed(self) -> bool:
        """Whether the next `take` is known to raise an error of the source."""
        return self._next is not None and isinstance(self._next.error, Exception)

    def take(self) -> BatchType | None:
        """Return the next batch, on the device; None if the source has ended.

        Raises:
            Exception: whatever the source does.
            Interrupted: if a signal has ended the waiting.
        """
        started = time.perf_counter()
        batch = self._copied()
        self.seconds_waiting = time.perf_counter() - started
        return batch

    def _fetch(self) -> _OnTheWay[BatchType]:
        try:
            with self._waiting():
                batch = next(self._source, None)
        except BaseException as error:  # noqa: BLE001 - raised when its turn comes
            return _OnTheWay(error=error)
        if batch is None:
            return _OnTheWay()
        if self._stream is None:
            return _OnTheWay(batch=batch.to(self._device))
        with torch.cuda.stream(self._stream):
            # Page-locked memory is used again when the copy from it has ended: PyTorch sees to that.
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
        # Its memory belongs to the stream that copied: not before this one has used it may it be used again.
        for tensor in found.batch.tensors():
            tensor.record_stream(computing)
        return found.batch
