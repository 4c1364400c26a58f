"""An engine that runs units in processes on this machine, by default one per GPU."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import attrs
from attrs import validators

from mobileclip.engines.pool import (
    Assignment,
    Channel,
    Engine,
    InlineEngine,
    LostWorkerError,
    Message,
    PoolEngine,
    default_num_threads,
    serve,
)
from mobileclip.engines.units import Work, WorkerResources
from mobileclip.hardware import all_devices, pick_device
from mobileclip.storage import StoreLimits, store_limits
from mobileclip.terminal.interruption import leave_to_parent

# Starting a process polls all other processes, and an exit code can be read only once.
_one_at_a_time = threading.Lock()


@attrs.frozen(kw_only=True)
class LocalEngine(PoolEngine):
    """An engine of processes on this machine.

    A single worker runs in the calling process; several workers run in separate processes. The engine replaces a dead
    or stuck worker, and counts a failed attempt for each unfinished unit of the worker.

    Args:
        num_workers: number of processes; None for one per device in `devices`.
        devices: devices for the workers, assigned in turn; empty for all CUDA devices, or without CUDA for the best
            available device.
        num_threads: number of CPU threads per worker; None for an equal share of the cores.
        apart: whether a single worker also runs in a separate process, so that no unit can kill the calling process.
        progress_seconds: time without progress, in seconds, after which a worker counts as stuck; also the limit for
            loading.
        retries: limits for retrying failed units.
    """

    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    devices: tuple[str, ...] = ()
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    apart: bool = False

    def most_workers(self, num_units: int) -> int:
        """Return the number of worker processes for a number of units, at most one per unit; see `Engine`."""
        return max(1, min(self.num_workers or len(self._devices()), num_units))

    @contextmanager
    def channels(self) -> Iterator[Callable[[], Channel]]:
        """Yield a function that starts a worker process."""
        yield partial(_Process, store_limits())

    def assignments(self, work: Work[Any, Any], num_workers: int) -> Iterator[Assignment]:
        """Yield one assignment per worker, with the devices in turn."""
        devices = self._devices()
        for number in range(num_workers):
            device = devices[number % len(devices)]
            resources = WorkerResources(
                device=device, num_threads=self.num_threads or default_num_threads(device, num_workers)
            )
            yield Assignment(work=work, resources=resources, torch_threads=default_num_threads("cpu", num_workers))

    def alone(self, num_units: int) -> Engine | None:
        """Return an in-process engine for a single worker, unless the worker must run in a separate process."""
        if self.apart or self.most_workers(num_units) > 1:
            return None
        return InlineEngine(device=self._devices()[0], num_threads=self.num_threads, retries=self.retries)

    def _devices(self) -> tuple[str, ...]:
        return tuple(str(pick_device(name)) for name in self.devices) or all_devices()


class _Process(Channel):
    """A worker process, connected by a pipe."""

    def __init__(self, stores: StoreLimits) -> None:
        # A forked child would inherit torch's threads in an unknown state, and could not use CUDA.
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_work, args=(other_end, stores), daemon=True)
        with _one_at_a_time:
            self._process.start()
        # The death of the child must close the pipe, so no other process may keep this end open.
        other_end.close()

    def send(self, message: Any) -> None:
        with suppress(OSError):  # the process died; `receive` will detect this
            self._pipe.send(message)

    def receive(self, seconds: float) -> Message | None:
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            self.end()
            code = self._process.exitcode
            raise LostWorkerError(f"ended with exit code {code} (-9: killed, often when out of memory)") from None

    def end(self) -> None:
        with _one_at_a_time:
            self._process.kill()  # a stopped process ignores other signals
            self._process.join()


def _work(connection: Connection, stores: StoreLimits) -> None:
    leave_to_parent()
    serve(connection.recv, connection.send, f"process {os.getpid()}", stores)
