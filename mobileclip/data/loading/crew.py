"""Loader processes, each of which prepares its chunks ahead; one that dies is noticed at once.

Each has a pipe of its own. Tensors go through shared memory, and are put there before a chunk is handed over, so that
a shared memory that is full is an error of the worker and not a chunk that never comes.

torch's `DataLoader` would not do: it raises the death of a worker by a handler of SIGCHLD, wherever the process that
trains is, in a step or a checkpoint, so that no other can take its place; and its workers share a pipe whose end it
holds itself, so that a message which one has half written is waited for beyond every timeout.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

import attrs
import numpy as np
import torch
import torch.multiprocessing

from mobileclip.data.loading.batch import share_images
from mobileclip.data.loading.order import StreamPosition
from mobileclip.data.randomness import derived_seed
from mobileclip.data.workers import LostProcessError, end_with_parent
from mobileclip.machine import MachineError, raise_machine_fault
from mobileclip.processes import portable_error
from mobileclip.storage import printable
from mobileclip.terminal import get_logger
from mobileclip.terminal.interruption import serve_loader

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)

logger = get_logger(__name__)

# Workers that die of the same chunk, one after another, after which the stream ends.
_MOST_LOST = 3
# Chunks that a worker makes ahead.
_NUM_AHEAD = 2
# Handing over takes milliseconds, unless the worker is stopped in the midst of it.
_HANDOVER_SECONDS = 1.0
_END_SECONDS = 1.0
# What the end of the other process raises in this one.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


@attrs.frozen(kw_only=True)
class Begin:
    """The message that starts a worker at a position.

    Args:
        number: of this beginning; chunks of an earlier one are not wanted any more.
        epoch: its number; -1 for the stream without end.
        start: where a stream goes on.
        num_passed: chunks that are made and not handed over: another worker had handed them over before it died.
    """

    number: int
    epoch: int
    start: StreamPosition
    num_passed: int = 0


class Source(Protocol[Item_co]):
    """Interface of what the workers read, of which each process has a copy."""

    def chunks(self, worker: int, num_workers: int, begin: Begin) -> Iterator[Item_co]:
        """Yield a worker's chunks."""

    def last_shard(self, worker: int) -> str:
        """Return the name of the shard that a worker is reading, as far as this process knows."""


class _LostWorkerError(Exception):
    """A worker has died; its chunk can be made again."""


@attrs.frozen
class _Raised:
    """What making a chunk raised, and where."""

    error: Exception
    trace: str


class _WorkersTraceError(Exception):
    """Stands as the cause of what a worker raised, and shows where it did."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@attrs.define(eq=False)
class _Member:
    """A worker's process, this end of the pipe to it, and how many of its chunks came since the last beginning."""

    process: BaseProcess
    connection: Connection
    num_received: int = 0
    has_ended: bool = False


class Crew(Generic[Item]):
    """Loader processes that are started once, and can begin at any position again.

    Args:
        source: of chunks.
        num_workers: number of processes.
        seconds: for which one of them is waited for.
        seed: of what draws from the generators of Python, NumPy and PyTorch in a worker; each has a stream of its own.

    Raises:
        MachineError: if the machine lets no process be started.
    """

    def __init__(self, source: Source[Item], *, num_workers: int, seconds: float, seed: int) -> None:
        self._source = source
        self._seconds = seconds
        self._seed = seed
        self._begin = Begin(number=-1, epoch=-1, start=StreamPosition())
        self._members: list[_Member] = []
        # A child that is forked has a copy of this object, whose end must end nobody.
        self.end = weakref.finalize(self, _end, self._members, os.getpid())
        for worker in range(num_workers):
            self._members.append(self._started(worker, num_workers))

    def begin(self, epoch: int, start: StreamPosition) -> int:
        """Have all workers begin at a position, and return the number of this beginning.

        Args:
            epoch: its number; -1 for the stream without end.
            start: where a stream goes on.
        """
        self._begin = Begin(number=self._begin.number + 1, epoch=epoch, start=start)
        for member in self._members:
            member.num_received = 0
            self._ask(member, self._begin)
        return self._begin.number

    def _replace(self, worker: int, start: StreamPosition) -> None:
        """Start another worker in the place of one: in a stream where that stands, in an epoch behind what it had."""
        old = self._members[worker]
        _kill(old)
        begin = self._begin
        is_epoch = begin.epoch >= 0
        num_passed = old.num_received if is_epoch else 0
        self._members[worker] = new = self._started(worker, len(self._members))
        new.num_received = old.num_received
        self._ask(new, attrs.evolve(begin, start=begin.start if is_epoch else start, num_passed=num_passed))

    def take(self, worker: int, number: int, *, on_lost: Callable[[], StreamPosition]) -> Item | None:
        """Return the next chunk of a worker, or of those that take its place if it dies; None where it has no more.

        Args:
            worker: its number.
            number: of the beginning whose chunk is meant.
            on_lost: called when another one takes its place; returns where a stream stands now.

        Raises:
            LostProcessError: if several have died, one after another; all workers end.
            TimeoutError: if it hands over nothing in time: it may be stopped, or stuck; all workers end.
            ValueError: if another beginning has come in between.
            Exception: what it raised itself.
        """
        if number != self._begin.number:
            raise ValueError("another epoch or stream of this pipeline has begun; go through one at a time")
        for num_lost in count(1):
            try:
                return self._taken(self._members[worker], number)
            except _LostWorkerError as lost:
                what = printable(f"worker {worker} of the loader {lost}, {self._source.last_shard(worker)}", limit=1000)
            if num_lost == _MOST_LOST:
                self.end()
                raise LostProcessError(
                    f"{what}; {_MOST_LOST} have died there, one after another: a sample may be what they die of, or "
                    "too little memory. Choose fewer num_workers or a smaller batch_size, or leave that shard out"
                )
            logger.warning("%s; another one takes its place, from the same sample on", what)
            self._replace(worker, on_lost())
        return None

    def _taken(self, member: _Member, number: int) -> Item | None:
        deadline = time.monotonic() + self._seconds
        while True:
            of, received = self._received(member, deadline)
            if of != number:
                continue  # what was made ahead of an epoch that was not gone through to its end
            if isinstance(received, _Raised):
                if isinstance(received.error, MachineError):
                    raise received.error
                raise received.error from _WorkersTraceError(received.trace)
            if received is None:
                member.has_ended = True
                return None
            member.num_received += 1
            with suppress(OSError):  # one that is dead is found out when its next chunk is wanted
                member.connection.send(number)
            chunk: Item = received
            return chunk

    def _late(self) -> TimeoutError:
        """End all workers, and return what is raised: which have chunks to come, the one whose turn it is first."""
        waiting = sorted((one.num_received, worker) for worker, one in enumerate(self._members) if not one.has_ended)
        awaited = ", ".join(
            f"worker {worker} (process {self._members[worker].process.pid}), {self._source.last_shard(worker)}"
            for _, worker in waiting
        )
        self.end()
        return TimeoutError(
            f"no batch came for {self._seconds:g} s from {printable(awaited, limit=1000)}: one may be stopped, or its "
            "disk or decoder stuck. See to it and start again, or give it more worker_seconds"
        )

    def _started(self, worker: int, num_workers: int) -> _Member:
        context = torch.multiprocessing.get_context()
        try:
            own_end, other_end = context.Pipe()
            process = context.Process(
                target=_work, args=(other_end, self._source, worker, num_workers, self._seed), daemon=True
            )
            process.start()
        except Exception as error:
            raise_machine_fault(error, "starting a worker that loads data")
            raise
        # The worker's death must be the end of the pipe, so no one else may hold that end.
        other_end.close()
        return _Member(process, own_end)

    def _ask(self, member: _Member, begin: Begin) -> None:
        member.has_ended = False
        with suppress(OSError):  # as above
            member.connection.send(begin)
            for _ in range(_NUM_AHEAD):
                member.connection.send(begin.number)

    def _received(self, member: _Member, deadline: float) -> tuple[int, Item | _Raised | None]:
        left = max(0.0, deadline - time.monotonic())
        ready = wait([member.connection, member.process.sentinel], left)
        if not ready:
            raise self._late()
        if member.connection not in ready:
            raise _lost(member)
        late = threading.Event()

        def wake() -> None:
            late.set()
            member.process.kill()  # what is waited for comes to an end

        alarm = threading.Timer(left + _HANDOVER_SECONDS, wake)
        alarm.daemon = True
        alarm.start()
        try:
            received: tuple[int, Item | _Raised | None] = member.connection.recv()
        except Exception as error:
            # Tensors of one that has died since cannot be had either.
            member.process.join(_END_SECONDS)
            if late.is_set():
                raise self._late() from error
            if member.process.is_alive():
                raise_machine_fault(error, "taking a batch from a worker")
                raise
            raise _lost(member) from error
        finally:
            alarm.cancel()
        return received


def _work(connection: Connection, source: Source[Item], worker: int, num_workers: int, seed: int) -> None:
    """Make chunk after chunk, as many as are asked for, until the process that takes them is gone or has enough."""
    serve_loader(worker)
    end_with_parent()
    share_images()
    torch.set_num_threads(1)
    own = derived_seed(seed, "worker", worker)
    random.seed(own)
    torch.manual_seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002 - of whoever draws from it
    chunks: Iterator[Item] = iter(())
    with suppress(*_GONE):
        while (asked := connection.recv()) is not None:
            if isinstance(asked, Begin):
                chunks = source.chunks(worker, num_workers, asked)
                continue
            try:
                connection.send((asked, next(chunks, None)))
            except _GONE:
                raise
            except Exception as error:  # noqa: BLE001 - it is raised where the chunk is wanted
                chunks = iter(())
                connection.send((asked, _raised(error)))


def _raised(error: Exception) -> _Raised:
    trace = traceback.format_exc()
    try:
        raise_machine_fault(error)
    except MachineError as fault:
        error = fault
    return _Raised(portable_error(error), trace)


def _lost(member: _Member) -> _LostWorkerError:
    """Return what is raised of a worker whose process has ended: how it has."""
    member.process.join()
    return _LostWorkerError(f"(process {member.process.pid}) {_fate(member.process.exitcode)}")


def _fate(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hints = {"SIGKILL": " (often for too much memory)", "SIGBUS": " (often as /dev/shm is full)"}
        return f"was ended by {name}{hints.get(name, '')}"
    return f"was ended by signal {-code}"


def _end(members: list[_Member], process: int) -> None:
    """End workers: those that do not hear it soon, stopped ones too, are killed."""
    if os.getpid() != process:
        return
    for member in members:
        with suppress(OSError):
            member.connection.send(None)
    deadline = time.monotonic() + _END_SECONDS
    for member in members:
        member.process.join(max(0.0, deadline - time.monotonic()))
        _kill(member)
    members.clear()


def _kill(member: _Member) -> None:
    member.process.kill()
    member.process.join()
    member.connection.close()
