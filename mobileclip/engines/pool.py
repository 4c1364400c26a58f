"""Engines that run units of work in this process, or in a pool of workers with loaded resources.

`LocalEngine` and `RayEngine` start workers and open a channel to each worker. One thread per worker in the driver
process sends units from a shared queue, and replaces a lost worker.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Generic

import attrs
import torch
from attrs import validators

from mobileclip.engines.units import (
    EntryT,
    FatalError,
    Listener,
    NamedUnit,
    OnProgress,
    ResultCallback,
    Retries,
    SetAside,
    TaskQueue,
    UnitT,
    Work,
    Worker,
    WorkerResources,
    failure_of,
    fatal_of,
)
from mobileclip.hardware import AUTO, pick_device
from mobileclip.processes import num_cores
from mobileclip.storage import StoreLimits, use_limits

# One unit in progress, and one unit that is being finished at the same time.
_UNITS_AT_ONCE = 2
# Interval between checks whether a loading worker is still needed.
_LOOK_SECONDS = 1.0
# Errors in a worker after the end of the driver.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class Engine(ABC):
    """Distributes units over workers."""

    @abstractmethod
    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Process all units, in any order, and report each unit to the listener.

        Args:
            work: processing of a unit by a worker.
            units: units with unique names.
            listener: listener that receives the results.

        Raises:
            ValueError: if a worker cannot load the resources of the work, too many workers are lost, or a `FatalError`
                ends the run. Results of finished units stay valid.
        """

    @abstractmethod
    def most_workers(self, num_units: int) -> int:
        """Return the maximum useful number of workers for a number of units, at least 1."""

    @contextmanager
    def reuse_workers(self) -> Iterator[Engine]:
        """Yield an engine with equal settings that reuses its workers for several `run` calls in sequence."""
        yield self


def default_num_threads(device: str, num_workers: int) -> int:
    """Return the number of threads per worker: an equal share of the cores; for a GPU, at least 2 and at most 16."""
    share = max(1, num_cores() // num_workers)
    return share if device == "cpu" else max(2, min(16, share))


class Overlap(Generic[UnitT, EntryT]):
    """A context manager that processes units in order, and finishes one unit at a time in a second thread.

    While the second thread verifies and uploads one unit, the device works on the next unit. On exit, the context
    manager waits for the last unit; after a signal, the context manager also raises the error of the last unit's
    callback.

    Args:
        worker: worker that processes the units.
        on_finished: callback with a unit and the unit's entry, called in the second thread.
        on_failed: callback with a unit and the unit's error, called in any thread; an error in the callback ends the
            work.
    """

    def __init__(
        self,
        worker: Worker[UnitT, EntryT],
        on_finished: Callable[[UnitT, EntryT], None],
        on_failed: Callable[[UnitT, Exception], None],
    ) -> None:
        self._worker, self._on_finished, self._on_failed = worker, on_finished, on_failed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="finishing")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Overlap[UnitT, EntryT]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(wait=True)
        if isinstance(error, KeyboardInterrupt):
            self.wait()

    def make(self, unit: UnitT, on_progress: OnProgress) -> None:
        """Process a unit, wait for the previous unit, and let the second thread finish the new unit.

        Raises:
            Exception: if `on_failed` or `on_finished` raised an error for this unit or the previous unit.
        """
        try:
            finish = self._worker(unit, on_progress)
        except Exception as error:  # noqa: BLE001 - report any error of a unit
            self._on_failed(unit, error)
            return
        try:
            self.wait()
        except BaseException:
            del finish  # release the resources of an unfinished unit, such as an incomplete file
            raise
        self._pending = self._pool.submit(self._finish, unit, finish)

    def wait(self) -> None:
        """Wait for the last unit, and raise the error of the unit's callback, if any."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, unit: UnitT, finish: Callable[[], EntryT]) -> None:
        try:
            entry = finish()
        except Exception as error:  # noqa: BLE001 - as above
            self._on_failed(unit, error)
        else:
            self._on_finished(unit, entry)


@attrs.frozen(kw_only=True)
class InlineEngine(Engine):
    """An engine that processes all units in this process.

    Args:
        device: device such as `cpu` or `cuda:1`; `auto` for the best available device.
        num_threads: number of threads of the worker; None for all cores, or for enough threads to keep a GPU busy.
        retries: limits for retrying failed units.
    """

    device: str = AUTO
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    retries: Retries = attrs.field(factory=Retries)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Process all units; see `Engine`."""
        device = str(pick_device(self.device))
        queue: TaskQueue[UnitT, EntryT] = TaskQueue(units, self.retries, listener, work.split)
        worker = work.open(
            WorkerResources(device=device, num_threads=self.num_threads or default_num_threads(device, 1))
        )

        def failed(unit: UnitT, error: Exception) -> None:
            queue.fail(unit, failure_of(unit, error))

        with Overlap(worker, queue.finish, failed) as overlap:
            while not queue.is_over:
                if (unit := queue.take(device)) is not None:
                    overlap.make(unit, queue.advance)
                else:
                    overlap.wait()
                    queue.wait()
            overlap.wait()

    def most_workers(self, num_units: int) -> int:  # noqa: ARG002 - required by `Engine`
        """Return 1; see `Engine`."""
        return 1


@attrs.frozen(kw_only=True, eq=False)
class Assignment:
    """The first message to a worker for a kind of work; units follow, and then the next assignment.

    Args:
        work: processing of the units that follow.
        resources: device and number of CPU threads of the worker.
        torch_threads: number of PyTorch's intra-op threads, for a worker on a CPU.
    """

    work: Work[Any, Any]
    resources: WorkerResources
    torch_threads: int


Message = tuple[str, str, Any]
"""A message from a worker: a kind, the name of a unit, and a value.

The kinds, and their values, are `ready` (location of the worker), `steps` (number of steps), `made` (no value; the
device is free), `finished` (entry of the unit), `failed` (failure of the unit) and `fatal` (reason for ending the run).
"""


class LostWorkerError(Exception):
    """Raised if a worker process or actor died or made no progress.

    Args:
        how: kind of the loss, as a predicate such as `made no progress for 60 s`.
        with_machine: whether the whole machine was lost.
    """

    def __init__(self, how: str, *, with_machine: bool = False) -> None:
        super().__init__(how)
        self.how, self.with_machine = how, with_machine


class Channel(ABC):
    """The connection of the driver to one worker; creating a channel starts a worker."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Send an assignment or a unit to the worker; `receive` detects a dead worker."""

    @abstractmethod
    def receive(self, seconds: float) -> Message | None:
        """Return the worker's next message; None if no message arrives within a number of seconds.

        Raises:
            LostWorkerError: if the worker died.
        """

    @abstractmethod
    def end(self) -> None:
        """End the worker immediately; callable from any thread, and several times."""


@attrs.define(kw_only=True, eq=False)
class _Member:
    """The state of one worker in the driver.

    Args:
        number: number of the worker, from 0, for messages.
        channel: channel to the worker.
        device: device of the worker.
        num_loading: number of sent assignments with resources that the worker has not loaded yet; while above zero, all
            messages except `ready` and `fatal` belong to earlier work.
        where: location of the worker, for messages; empty before the start.
        is_free: whether the device of the worker is free for another unit.
        units: unfinished units of the worker, by name; at most two.
    """

    number: int
    channel: Channel
    device: str
    num_loading: int = 0
    where: str = ""
    is_free: bool = True
    units: dict[str, Any] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        return f"worker {self.number} ({self.where})" if self.where else f"worker {self.number}"


@attrs.frozen(kw_only=True)
class PoolEngine(Engine):
    """Base class of engines with a pool of workers, such as processes or Ray actors."""

    progress_seconds: float = attrs.field(default=3600.0, validator=validators.gt(0))
    retries: Retries = attrs.field(factory=Retries)

    @abstractmethod
    def channels(self) -> AbstractContextManager[Callable[[], Channel]]:
        """Return a context manager that yields a function; each call starts a worker."""

    @abstractmethod
    def assignments(self, work: Work[Any, Any], num_workers: int) -> Iterator[Assignment]:
        """Yield `num_workers` assignments, one per worker."""

    def alone(self, num_units: int) -> Engine | None:  # noqa: ARG002 - most engines always use a pool
        """Return an engine that processes a number of units without a pool; None to use the pool."""
        return None

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Process all units; see `Engine`."""
        with self.reuse_workers() as engine:
            engine.run(work, units, listener)

    @contextmanager
    def reuse_workers(self) -> Iterator[Engine]:
        """Yield an engine that reuses its workers for several `run` calls; see `Engine`."""
        with ExitStack() as opened:
            pool = _Pool(self, lambda: opened.enter_context(self.channels()))
            try:
                yield pool
            finally:
                pool.dismiss()


class _Pool(Engine):
    """An engine that reuses its workers for several `run` calls.

    Args:
        engine: engine with the settings of the pool.
        open_channels: function that returns a function for starting workers; the pool calls `open_channels` only once,
            before starting the first worker.
    """

    def __init__(self, engine: PoolEngine, open_channels: Callable[[], Callable[[], Channel]]) -> None:
        self._engine, self._open_channels = engine, cache(open_channels)
        self._numbers, self._lock = count(), threading.Lock()
        self._idle: list[_Member] = []

    def most_workers(self, num_units: int) -> int:
        return self._engine.most_workers(num_units)

    def dismiss(self) -> None:
        """End all idle workers."""
        self._end(self._idle)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        if (alone := self._engine.alone(len(units))) is not None:
            alone.run(work, units, listener)
        elif units:
            self._open_channels()
            num_workers = self.most_workers(len(units))
            queue: TaskQueue[UnitT, EntryT] = TaskQueue(
                units, self._engine.retries, listener, work.split, num_workers=num_workers
            )
            members: set[_Member] = set()
            with ThreadPoolExecutor(num_workers, thread_name_prefix="attending") as threads:
                try:
                    attending = [
                        threads.submit(self._attend, queue, assignment, members)
                        for assignment in self._engine.assignments(work, num_workers)
                    ]
                    wait(attending, return_when=FIRST_EXCEPTION)
                finally:
                    if not queue.is_over:
                        queue.close()
                        self._end(members)
            try:
                for one in attending:
                    one.result()
            except BaseException:
                self._end(members)  # another thread may have started a worker in the meantime
                raise
            self._idle += members

    def _end(self, members: Iterable[_Member]) -> None:
        for member in tuple(members):
            member.channel.end()

    def _attend(self, queue: TaskQueue[Any, Any], assignment: Assignment, members: set[_Member]) -> None:
        """Keep one worker busy until the end of the work, and replace a lost worker."""
        member = None
        while queue.wait():
            member = member or self._member(assignment, members)
            try:
                self._give(queue, member, members)
            except LostWorkerError as lost:
                member.channel.end()
                members.discard(member)
                if not queue.is_over:
                    queue.lose(tuple(member.units.values()), member.name, lost.how, with_machine=lost.with_machine)
                member = None

    def _member(self, assignment: Assignment, members: set[_Member]) -> _Member:
        """Send an assignment to an idle worker with the assignment's device, or to a new worker; return the worker."""
        device = assignment.resources.device
        with self._lock:
            idle = [one for one in self._idle if one.device == device]
            member = min(idle, key=lambda one: one.num_loading, default=None)
            if member is not None:
                self._idle.remove(member)
        if member is None:
            channel = self._open_channels()()
            member = _Member(number=next(self._numbers), channel=channel, device=device)
        member.num_loading += 1
        member.is_free = True
        members.add(member)
        member.channel.send(assignment)
        return member

    def _give(self, queue: TaskQueue[Any, Any], member: _Member, members: set[_Member]) -> None:
        """Send units to a worker until no unit is left for the worker, or the work ends.

        Raises:
            LostWorkerError: if the worker died, or made no progress for `progress_seconds`.
            FatalError: if the worker reports a fatal error.
        """
        units, seconds, heard = member.units, self._engine.progress_seconds, time.monotonic()
        while not queue.is_over:
            if not member.num_loading and member.is_free and len(units) < _UNITS_AT_ONCE:
                is_alone = any(map(queue.is_suspect, units.values()))
                unit = None if is_alone else queue.take(member.name, is_idle=not units)
                if unit is not None:
                    units[unit.name], member.is_free = unit, False
                    member.channel.send(unit)
                elif not units:
                    return
            message = member.channel.receive(min(_LOOK_SECONDS, seconds))
            if message is not None:
                heard = time.monotonic()
                _note(queue, member, *message)
            elif time.monotonic() - heard > seconds:
                self._refuse_to_wait(member, members)

    def _refuse_to_wait(self, member: _Member, members: set[_Member]) -> None:
        seconds = self._engine.progress_seconds
        if not member.num_loading:
            raise LostWorkerError(f"made no progress for {seconds:g} s")
        if all(one.num_loading for one in tuple(members)):
            raise ValueError(
                f"no worker was ready within {seconds:g} s; check that the cores and GPUs for a worker are available, "
                "or increase progress_seconds if loading takes longer"
            )
        raise LostWorkerError(f"was not ready within {seconds:g} s")


def _note(queue: TaskQueue[Any, Any], member: _Member, kind: str, name: str, value: Any) -> None:
    if kind == "fatal":
        raise FatalError(value)
    if kind == "ready":
        member.where = value
        member.num_loading -= 1
        return
    if member.num_loading:
        return  # the message belongs to the previous work
    match kind:
        case "steps":
            queue.advance(value)
        case "made":
            member.is_free = True
        case "finished":
            queue.finish(member.units.pop(name), value)
        case "failed":
            queue.fail(member.units.pop(name), value)


def serve(receive: Callable[[], Any], send: Callable[[Message], None], where: str, stores: StoreLimits) -> None:
    """Receive and process assignments and units in a worker until the driver exits.

    Args:
        receive: function that returns the next assignment or unit.
        send: function that sends a message to the driver, called from any thread, one call at a time.
        where: location of the worker, for messages.
        stores: timeouts of object stores, copied from the driver.
    """
    lock = threading.Lock()

    def say(kind: str, unit: str = "", value: Any = None) -> None:
        with lock:
            send((kind, unit, value))

    def failed(unit: NamedUnit, error: Exception) -> None:
        try:
            say("failed", unit.name, failure_of(unit, error))
        except FatalError as fatal:
            say("fatal", unit.name, str(fatal))

    with suppress(*_GONE), use_limits(stores):
        try:
            received = receive()
            while True:
                assignment: Assignment = received
                device = str(pick_device(assignment.resources.device))
                if device == "cpu":
                    torch.set_num_threads(assignment.torch_threads)
                worker = assignment.work.open(attrs.evolve(assignment.resources, device=device))
                say("ready", value=f"{device}, {where}")
                with Overlap(worker, lambda unit, entry: say("finished", unit.name, entry), failed) as overlap:
                    while not isinstance(received := receive(), Assignment):
                        overlap.make(received, lambda steps: say("steps", value=steps))
                        say("made")
        except _GONE:
            raise
        except Exception as error:  # noqa: BLE001 - report any error to the run
            say("fatal", value=fatal_of(error))


class OrderedResults(ResultCallback[UnitT, EntryT]):
    """A context manager that passes the results of units to a callback in the order of the units.

    Early results wait on disk, in a temporary directory, because many units may finish during the retries of another
    unit.

    Args:
        units: all units, in the order in which `take` receives the results.
        take: callback with a unit and the unit's entry, or with a unit and a `SetAside` if the unit failed.
    """

    def __init__(self, units: Sequence[UnitT], take: Callable[[UnitT, EntryT | SetAside], None]) -> None:
        super().__init__(self._wait)
        self._numbers = {unit.name: number for number, unit in enumerate(units)}
        self._units, self._pass_on, self._next = units, take, 0
        self._folder = tempfile.TemporaryDirectory(prefix=".mobileclip-entries.")

    def __enter__(self) -> OrderedResults[UnitT, EntryT]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._folder.cleanup()

    def _wait(self, unit: UnitT, result: EntryT | SetAside) -> None:
        number = self._numbers[unit.name]
        if number != self._next:
            self._path(number).write_bytes(pickle.dumps(result))
            return
        self._pass_on(unit, result)
        self._next += 1
        while (path := self._path(self._next)).exists():
            self._pass_on(self._units[self._next], pickle.loads(path.read_bytes()))  # noqa: S301 - this process wrote it
            path.unlink()
            self._next += 1

    def _path(self, number: int) -> Path:
        return Path(self._folder.name, str(number))
