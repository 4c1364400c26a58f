"""Worker processes that make chunks of batches in advance; the pool notices the death of a worker immediately.

Each worker has its own pipe. A worker copies tensors to shared memory before it sends a chunk, so full shared memory
causes an error in the worker instead of a chunk that never arrives.

torch's `DataLoader` is unsuitable for two reasons. If a worker dies, the DataLoader's SIGCHLD handler raises an
exception at any point of the training process, such as in a step or a checkpoint, so the process cannot replace the
worker. The DataLoader's workers also share a pipe whose write end the DataLoader itself keeps open, so the DataLoader
waits beyond any timeout for a half-written message.
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

# Number of chunks that a worker makes in advance.
_NUM_AHEAD = 2
# Receiving a chunk takes milliseconds, unless the worker is stopped during sending.
_HANDOVER_SECONDS = 1.0


class LostWorkerError(Exception):
    """Raised if a worker dies; a new worker can make the lost chunks again."""


class ChunkSource(Protocol[Item_co]):
    """Interface of the source from which workers read; each process has a copy."""

    def chunks(self, worker: int, num_workers: int) -> Iterator[Item_co]:
        """Yield the chunks of a worker."""

    def last_shard(self, worker: int) -> str:
        """Return the name of the shard that a worker is reading, as last reported to this process."""


class _WorkersTraceError(Exception):
    """Cause of an exception from a worker; shows the worker's traceback."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@attrs.frozen(eq=False)
class _Member:
    """A worker process, the read end of its pipe, and the semaphore that limits the chunks made in advance."""

    process: BaseProcess
    connection: Connection
    allowed: Semaphore


class WorkerPool(Generic[Item]):
    """Worker processes that make the chunks of a source; a context manager that kills the workers on exit.

    Args:
        source: object from which each worker gets an iterator over its chunks.
        num_workers: number of worker processes.
        seconds: maximum time to wait for a worker's next chunk, in seconds.
        seed: seed from which each worker derives its own seed for the generators of Python, NumPy and PyTorch.

    Raises:
        ResourceExhaustedError: if the machine cannot start a worker process.
    """

    def __init__(self, source: ChunkSource[Item], *, num_workers: int, seconds: float, seed: int) -> None:
        self._source, self._seconds = source, seconds
        self._members: list[_Member] = []
        # Also runs at the end of the program. A forked child has a copy of this object that must not kill the workers.
        self._end = weakref.finalize(self, _end, self._members, os.getpid())
        for worker in range(num_workers):
            self._members.append(self._started(worker, num_workers, derived_seed(seed, "worker", worker)))

    def __enter__(self) -> Iterator[Item]:
        """Return an iterator over the chunks: the first chunk of every worker, then the second of each, and so on.

        Raises:
            LostWorkerError: if a worker dies.
            TimeoutError: if a worker sends no chunk within `seconds`; the worker may be stopped or stuck.
            Exception: any exception that a worker raised.
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
        # The pipe must close when the worker dies, so no other process may hold the write end.
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
            member.process.kill()  # ends the pending `recv`

        alarm = threading.Timer(self._seconds + _HANDOVER_SECONDS, wake)
        alarm.daemon = True
        alarm.start()
        try:
            received: tuple[Item | Exception | None, str] = member.connection.recv()
        except Exception as error:
            # The tensors of a worker that has died in the meantime are also lost.
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
            f"no batch arrived for {self._seconds:g} s: {self._name(worker)} may be stopped, or its disk or "
            "decoder may hang. Fix the cause and start again, or increase worker_seconds"
        )

    def _name(self, worker: int) -> str:
        name = f"worker {worker} (process {self._members[worker].process.pid}), {self._source.last_shard(worker)},"
        return printable(name, limit=1000)


def _work(
    connection: Connection, allowed: Semaphore, made: Callable[[], Iterator[Item]], worker: int, seed: int
) -> None:
    """Make as many chunks as the semaphore allows, until this process is killed."""
    serve_loader(worker)
    end_with_parent()
    share_images()
    torch.set_num_threads(1)
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for code that uses the global generator
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
        except Exception as error:  # noqa: BLE001 - the receiver of the chunk raises it
            connection.send(_raised(error))
        threading.Event().wait()  # shared tensors live only as long as this process


def _raised(error: Exception) -> tuple[Exception, str]:
    """Return an error in a form that another process can unpickle, and its traceback."""
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
        hints = {"SIGKILL": " (often because it used too much memory)", "SIGBUS": " (often because /dev/shm is full)"}
        return f"was ended by {name}{hints.get(name, '')}"
    return f"was ended by signal {-code}"


def _end(members: list[_Member], process: int) -> None:
    """Kill the workers; SIGKILL is the only signal that also ends stopped processes."""
    if os.getpid() != process:
        return
    for member in members:
        member.process.kill()
    for member in members:
        member.process.join()
        member.connection.close()
    members.clear()
