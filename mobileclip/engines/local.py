"""An engine that runs units in processes on this machine, by default one per GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import attrs
from attrs import validators

from mobileclip.engines.base import Engine, default_num_threads
from mobileclip.engines.crew import CrewEngine, Member, Transport
from mobileclip.engines.inline import InlineEngine
from mobileclip.engines.work import Place, Work
from mobileclip.engines.worker import Assignment, Message, serve
from mobileclip.hardware.devices import all_devices, pick_device
from mobileclip.storage import StoreLimits, store_limits
from mobileclip.terminal.interruption import leave_to_parent


@attrs.frozen(kw_only=True)
class LocalEngine(CrewEngine):
    """Processes on this machine.

    One worker runs in this process, several in processes of their own. A worker that dies, of too little memory for
    instance, or that is stopped or stuck, is replaced, and that is a failed try of the units that it had.

    Args:
        num_workers: processes; None for one per CUDA device, or one where there is none.
        devices: what the workers run on, in turn; none for all CUDA devices, or the best one where there is none.
        num_threads: threads of a worker; None for its share of the cores.
        apart: whether one worker alone runs in a process of its own, too, so that no unit ends this one.
        silence_seconds: without a heartbeat, after which a worker that was heard before counts as stopped.
        progress_seconds: without a step of a unit, after which a worker counts as stuck; it loads what it needs in this
            time, too.
        retries: how often a unit that fails is tried.
    """

    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    devices: tuple[str, ...] = ()
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    apart: bool = False

    def most_workers(self, num_units: int) -> int:
        """Return how many processes there would be; see `Engine`."""
        return max(1, min(self.num_workers or len(self.named_devices()), num_units))

    def named_devices(self) -> tuple[str, ...]:
        """Return the devices that the workers run on, in turn."""
        return tuple(str(pick_device(name)) for name in self.devices) or all_devices()

    @contextmanager
    def transport(self) -> Iterator[Transport]:
        """Yield pipes; see `CrewEngine`."""
        yield _Pipes(engine=self)

    def assignments(self, work: Work[Any, Any], num_workers: int) -> Iterator[Assignment]:
        """Yield what so many workers are given, on one device after the other."""
        devices = self.named_devices()
        for number in range(num_workers):
            device = devices[number % len(devices)]
            place = Place(device=device, num_threads=self.num_threads or default_num_threads(device, num_workers))
            yield Assignment(work=work, place=place, torch_threads=default_num_threads("cpu", num_workers))

    def alone(self, num_units: int) -> Engine | None:
        """Return this process where one worker does, unless it has to work apart."""
        if self.apart or self.most_workers(num_units) > 1:
            return None
        (device, *_) = self.named_devices()
        return InlineEngine(device=device, num_threads=self.num_threads, retries=self.retries)


@attrs.frozen(kw_only=True)
class _Pipes(Transport):
    """Processes, each with a pipe."""

    engine: LocalEngine

    def start(self) -> tuple[BaseProcess, Connection]:
        # A forked child would inherit torch's threads in an unknown state, and CUDA not at all.
        context = multiprocessing.get_context("spawn")
        own_end, other_end = context.Pipe()
        process = context.Process(target=_work, args=(other_end, self.engine, store_limits()), daemon=True)
        process.start()
        # The child's death must be the end of the pipe, so no one else may hold that end.
        other_end.close()
        return process, own_end

    def send(self, member: Member, message: Any) -> None:
        with suppress(OSError):  # it died; reading from it will tell
            member.handle[1].send(message)

    def receive(self, members: Sequence[Member], seconds: float) -> Iterator[tuple[Member, Sequence[Message] | str]]:
        ready = wait([member.handle[1] for member in members], seconds)
        for member in members:
            process, connection = member.handle
            if connection not in ready:
                continue
            try:
                yield member, [connection.recv()]
            except (EOFError, OSError):
                process.join()
                yield member, f"ended with exit code {process.exitcode} (-9: killed, often for too much memory)"

    def end(self, members: Iterable[Member]) -> None:
        for process, connection in [member.handle for member in members]:
            connection.close()
            process.kill()  # one that is stopped hears nothing else
            process.join()


def _work(connection: Connection, engine: LocalEngine, stores: StoreLimits) -> None:
    leave_to_parent()
    serve(connection.recv, connection.send, f"process {os.getpid()}", engine.heartbeat_seconds, stores)
