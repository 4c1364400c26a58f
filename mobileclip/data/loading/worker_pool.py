"""Worker processes that make chunks of batches ahead; the death of one is noticed at once.

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
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from typing import Generic, Protocol, TypeVar

import attrs
import numpy as np
import torch
import torch.multiprocessing

from mobileclip.data.loading.batch import share_images
from mobileclip.data.randomness import derived_seed
from mobileclip.data.workers import end_with_parent
from mobileclip.machine import ResourceExhaustedError, raise_machine_fault
from mobileclip.processes import portable_error
from mobileclip.storage import printable
from mobileclip.terminal.interruption import serve_loader

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)

# Chunks that a worker makes ahead.
_NUM_AHEAD = 2
# Handing over takes milliseconds, unless the worker is stopped in the midst of it.
_HANDOVER_SECONDS = 1.0


class LostWorkerError(Exception):
    """A worker has died; others can make its chunks again."""


class ChunkSource(Protocol[Item_co]):
    """Interface of what the workers read, of which each process has a copy."""

    def chunks(self, worker: int, num_workers: int) -> Iterator[Item_co]:
        """Yield a worker's chunks."""

    def last_shard(self, worker: int) -> str:
        """Return the name of the shard that a worker is reading, as far as this process knows."""


class _WorkersTraceError(Exception):
    """Stands as the cause of what a worker raised, and shows where it did."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@attrs.frozen(eq=False)
class _Member:
    """A worker's process, this end of the pipe from it, and what counts how many more chunks it may make."""

    process: BaseProcess
    connection: Connection
    allowed: Semaphore


class WorkerPool(Generic[Item]):
    """Processes that each go through their chunks of a source; a context manager, at whose end they are killed.

    Args:
        source: of chunks.
        num_workers: number of processes.
        seconds: for which one of them is waited for.
        seed: seed of what draws from the generators of Python, NumPy and PyTorch in a worker; each has a stream of its
            own.

    Raises:
        ResourceExhaustedError: if the machine lets no process be started.
    """

    def __init__(self, source: ChunkSource[Item], *, num_workers: int, seconds: float, seed: int) -> None:
        self._source, self._seconds = source, seconds
        self._members: list[_Member] = []
        # At the end of the program too; a child that is forked has a copy of this object, whose end must end nobody.
        self._end = weakref.finalize(self, _end, self._members, os.getpid())
        for worker in range(num_workers):
            self._members.append(self._started(worker, num_workers, derived_seed(seed, "worker", worker)))

    def __enter__(self) -> Iterator[Item]:
        """Return the chunks: the first of every worker, the second of every worker, and so on.

        Raises:
            LostWorkerError: if a worker dies.
            TimeoutError: if one hands over nothing in time: it may be stopped, or stuck.
            Exception: what a worker raised itself.
        """
        return self._chunks()

    def __exit__(self, *_: object) -> None:
        self._end()

    def _started(self, worker: int, num_workers: int, seed: int) -> _Member:
        context = torch.multiprocessing.get_context()
        try:
            (own_end, other_end), allowed = context.Pipe(duplex=False), context.Semaphore(_NUM_AHEAD)
            work = partial(_work, other_end, allowed, partial(self._source.chunks, worker, num_workers), worker, seed)
            process = context.Process(target=work, daemon=True)
            process.start()
        except Exception as error:
            raise_machine_fault(error, "starting a worker that loads data")
            raise
        # The worker's death must be the end of the pipe, so no one else may hold that end.
        other_end.close()
        return _Member(process, own_end, allowed)

    def _chunks(self) -> Iterator[Item]:
        while True:
            for worker, member in enumerate(self._members):
                chunk, trace = self._received(worker, member)
                if isinstance(chunk, ResourceExhaustedError):
                    raise chunk
                if isinstance(chunk, Exception):
                    raise chunk from _WorkersTraceError(trace)
                if chunk is None:
                    return
                member.allowed.release()
                yield chunk

    def _received(self, worker: int, member: _Member) -> tuple[Item | Exception | None, str]:
        if not wait([member.connection, member.process.sentinel], self._seconds):
            raise self._late(worker)
        late = threading.Event()

        def wake() -> None:
            late.set()
            member.process.kill()  # what is waited for comes to an end

        alarm = threading.Timer(self._seconds + _HANDOVER_SECONDS, wake)
        alarm.daemon = True
        alarm.start()
        try:
            received: tuple[Item | Exception | None, str] = member.connection.recv()
        except Exception as error:
            # Tensors of one that has died since cannot be had either.
            member.process.join(_HANDOVER_SECONDS)
            if late.is_set():
                raise self._late(worker) from error
            if member.process.is_alive():
                raise_machine_fault(error, "taking a batch from a worker")
                raise
            raise LostWorkerError(f"{self._name(worker)} {_fate(member.process.exitcode)}") from error
        finally:
            alarm.cancel()
        return received

    def _late(self, worker: int) -> TimeoutError:
        return TimeoutError(
            f"no batch came for {self._seconds:g} s from {self._name(worker)}: it may be stopped, or its disk or "
            "decoder may hang. Fix this and start again, or increase worker_seconds"
        )

    def _name(self, worker: int) -> str:
        name = f"worker {worker} (process {self._members[worker].process.pid}), {self._source.last_shard(worker)},"
        return printable(name, limit=1000)


def _work(
    connection: Connection, allowed: Semaphore, made: Callable[[], Iterator[Item]], worker: int, seed: int
) -> None:
    """Make chunk after chunk, as many as are allowed, until this process is killed."""
    serve_loader(worker)
    end_with_parent()
    share_images()
    torch.set_num_threads(1)
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - of whoever draws from it
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            chunks = made()
            while allowed.acquire():
                chunk = next(chunks, None)
                connection.send((chunk, ""))
                if chunk is None:
                    break
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where the chunk is wanted
            connection.send(_raised(error))
        threading.Event().wait()  # what is shared lives as long as this process


def _raised(error: Exception) -> tuple[Exception, str]:
    """Return an error as another process can read it, and where it was raised."""
    trace = traceback.format_exc()
    try:
        raise_machine_fault(error)
    except ResourceExhaustedError as fault:
        error = fault
    return portable_error(error), trace


def _fate(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hints = {"SIGKILL": " (often for too much memory)", "SIGBUS": " (often as /dev/shm is full)"}
        return f"was ended by {name}{hints.get(name, '')}"
    return f"was ended by signal {-code}"


def _end(members: list[_Member], process: int) -> None:
    """Kill workers, which is the one thing that stopped ones hear, too."""
    if os.getpid() != process:
        return
    for member in members:
        member.process.kill()
    for member in members:
        member.process.join()
        member.connection.close()
    members.clear()
