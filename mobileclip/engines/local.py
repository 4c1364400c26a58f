"""Processes on this machine, one per device: each loads what the work needs once and takes unit after unit."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic

import attrs
import torch
from attrs import validators

from mobileclip.engines.base import Engine, default_num_threads
from mobileclip.engines.inline import InlineEngine
from mobileclip.engines.overlap import Overlap
from mobileclip.engines.queue import Listener, Retries, UnitQueue
from mobileclip.engines.work import EntryT, FatalError, NamedUnit, Place, UnitT, Work, failure_of
from mobileclip.hardware.devices import all_devices, pick_device
from mobileclip.storage import StoreLimits, use_limits
from mobileclip.terminal.interruption import leave_to_parent

# Signs of life in the time after which their absence counts.
_BEATS = 10
_END_SECONDS = 5.0
# What the end of the other process raises in this one.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)
# One that is made, and one that is finished beside it.
_UNITS_AT_ONCE = 2


@attrs.frozen(kw_only=True)
class LocalEngine(Engine):
    """Processes on this machine.

    One worker runs in this process, several in processes of their own. A worker that dies, of too little memory for
    instance, or that is stopped or stuck, is replaced, and that is a failed try of the units that it had.

    Args:
        num_workers: processes; None for one per CUDA device, or one where there is none.
        devices: what the workers run on, in turn; none for all CUDA devices, or the best one where there is none.
        num_threads: threads of a worker; None for its share of the cores.
        silence_seconds: without a sign of life, after which a worker that has begun counts as stopped.
        progress_seconds: without a step of a unit, after which a worker counts as stuck; it loads what it needs in this
            time, too.
        retries: how often a unit that fails is tried.
        stores: how long stores are waited for.
    """

    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    devices: tuple[str, ...] = ()
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    silence_seconds: float = attrs.field(default=120.0, validator=validators.gt(0))
    progress_seconds: float = attrs.field(default=3600.0, validator=validators.gt(0))
    retries: Retries = attrs.field(factory=Retries)
    stores: StoreLimits = attrs.field(factory=StoreLimits)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        devices = tuple(str(pick_device(name)) for name in self.devices) or all_devices()
        num_workers = max(1, min(self.num_workers or len(devices), len(units)))
        places = [
            Place(device=device, num_threads=self.num_threads or default_num_threads(device, num_workers))
            for device in (devices[index % len(devices)] for index in range(num_workers))
        ]
        if num_workers == 1:
            (place,) = places
            alone = InlineEngine(
                device=place.device, num_threads=place.num_threads, retries=self.retries, stores=self.stores
            )
            alone.run(work, units, listener)
        else:
            _Crew(self, work, places, UnitQueue(units, self.retries, listener)).run()


@attrs.define(eq=False)
class _Member(Generic[UnitT]):
    """A worker's process.

    Args:
        process: its process.
        connection: this end of the pipe to it.
        place: where it works.
        name: how it is called.
        progressed: when it has last done a step.
        heard: when it has last given a sign of life, once it has begun.
        units: what it has, by name; the last one is being made or waits for it.
        is_free: whether it may have another one.
    """

    process: BaseProcess
    connection: Connection
    place: Place
    name: str
    progressed: float
    heard: float | None = None
    units: dict[str, UnitT] = attrs.field(factory=dict)
    is_free: bool = True


class _Crew(Generic[UnitT, EntryT]):
    """The processes of a run, and who does what."""

    def __init__(
        self,
        engine: LocalEngine,
        work: Work[UnitT, EntryT],
        places: Sequence[Place],
        queue: UnitQueue[UnitT, EntryT],
    ) -> None:
        self._engine = engine
        self._work = work
        self._num_workers = len(places)
        self._places = deque(places)
        self._queue = queue
        self._members: list[_Member[UnitT]] = []
        self._numbers = count()
        self._beat_seconds = min(engine.silence_seconds, engine.progress_seconds) / _BEATS
        self._looked = time.monotonic()
        # A forked child would inherit torch's threads in an unknown state, and CUDA not at all.
        self._context = multiprocessing.get_context("spawn")

    def run(self) -> None:
        try:
            while not self._queue.is_over:
                self._assign()
                self._hear()
                self._look_again()
                self._end_hung()
        finally:
            for member in self._members:
                member.connection.close()
                member.process.terminate()
            for member in self._members:
                _end(member.process)

    def _assign(self) -> None:
        """Hire as many as there is work for, and give those that are free a unit."""
        num_free = sum(member.is_free and not member.units for member in self._members)
        for _ in range(min(len(self._places), self._queue.num_ready - num_free)):
            self._members.append(self._hire(self._places.popleft()))
        # Those that have nothing come first.
        for member in sorted(self._members, key=lambda one: len(one.units)):
            if not member.is_free or len(member.units) >= _UNITS_AT_ONCE or self._has_suspect(member):
                continue
            unit = self._queue.take(member.name, is_idle=not member.units)
            if unit is None:
                return
            member.units[unit.name] = unit
            member.is_free = False
            member.progressed = time.monotonic()
            with suppress(OSError):  # it died idle; reading from it will tell
                member.connection.send(unit)

    def _has_suspect(self, member: _Member[UnitT]) -> bool:
        return any(map(self._queue.is_suspect, member.units.values()))

    def _hear(self) -> None:
        """Wait for words of the members, no longer than until something else is due."""
        connections = [member.connection for member in self._members]
        due = self._queue.seconds_to_next() or self._beat_seconds
        if not connections:
            time.sleep(min(due, self._beat_seconds))
            return
        ready = set(wait(connections, min(due, self._beat_seconds)))
        for member in [one for one in self._members if one.connection in ready]:
            try:
                kind, name, value = member.connection.recv()
            except (EOFError, OSError):
                member.process.join()
                how = f"ended with exit code {member.process.exitcode} (-9: killed, often for too much memory)"
                self._bury(member, how)
                continue
            self._note(member, kind, name, value)

    def _note(self, member: _Member[UnitT], kind: str, name: str, value: Any) -> None:
        member.heard = time.monotonic()
        if kind != "alive":
            member.progressed = member.heard
        match kind:
            case "steps":
                self._queue.advance(value)
            case "made":
                member.is_free = True
            case "finished":
                self._queue.finish(member.units.pop(name), value)
            case "failed":
                self._queue.fail(member.units.pop(name), value)
            case "fatal":
                raise FatalError(value)

    def _hire(self, place: Place) -> _Member[UnitT]:
        own_end, other_end = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(other_end, self._work, place),
            kwargs={
                "num_workers": self._num_workers,
                "beat_seconds": self._beat_seconds,
                "stores": self._engine.stores,
            },
            daemon=True,
        )
        process.start()
        # The child's death must be the end of the pipe, so no one else may hold that end.
        other_end.close()
        name = f"worker {next(self._numbers)} ({place.device}, process {process.pid})"
        return _Member(process, own_end, place, name, progressed=time.monotonic())

    def _look_again(self) -> None:
        """Forgive the time in which this process was stopped itself, or its caller had it wait: nobody looked then."""
        now = time.monotonic()
        away = now - self._looked - 2 * self._beat_seconds
        self._looked = now
        for member in self._members if away > 0 else ():
            member.progressed += away
            member.heard = None if member.heard is None else member.heard + away

    def _end_hung(self) -> None:
        """End and replace workers that are stopped or stuck."""
        now = time.monotonic()
        for member in tuple(self._members):
            if member.heard is not None and now - member.heard > self._engine.silence_seconds:
                how = f"gave no sign of life for {self._engine.silence_seconds:g} s (it may have been stopped)"
            elif member.units and now - member.progressed > self._engine.progress_seconds:
                how = f"did no step of it for {self._engine.progress_seconds:g} s"
            else:
                continue
            member.process.kill()
            self._bury(member, how)

    def _bury(self, member: _Member[UnitT], how: str) -> None:
        """Give the place of a process that is gone to another, and its units back."""
        member.process.join()
        member.connection.close()
        self._members.remove(member)
        self._places.append(member.place)
        self._queue.lose(tuple(member.units.values()), member.name, how)


def _end(process: BaseProcess) -> None:
    """Wait for a process that was asked to end; one that is stopped does not hear it."""
    process.join(_END_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _work(
    connection: Connection,
    work: Work[Any, Any],
    place: Place,
    *,
    num_workers: int,
    beat_seconds: float,
    stores: StoreLimits,
) -> None:
    """Do unit after unit until the other end of the connection is closed, or its process is gone."""
    leave_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))
    sending = threading.Lock()

    def send(kind: str, name: str = "", value: Any = None) -> None:
        with sending:
            connection.send((kind, name, value))

    threading.Thread(target=_beat, args=(send, beat_seconds), daemon=True).start()
    with suppress(*_GONE), use_limits(stores):
        try:
            worker = work.open(place)
            send("ready")
            with Overlap(
                worker,
                lambda unit, entry: send("finished", unit.name, entry),
                lambda unit, error: _send_failure(send, unit, error),
            ) as overlap:
                while True:
                    overlap.make(connection.recv(), lambda steps: send("steps", value=steps))
                    send("made")
        except _GONE:
            raise
        except ValueError as error:
            send("fatal", value=str(error))
        except Exception:  # noqa: BLE001 - whatever it was, the run must hear of it
            send("fatal", value=f"a worker failed:\n{traceback.format_exc()}")


def _end_with_parent() -> None:
    """End with the process that started this one, however that ends: nobody waits for the unit any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only started processes work"
    wait([parent.sentinel])
    os._exit(1)


def _beat(send: Callable[[str], None], seconds: float) -> None:
    with suppress(OSError):
        while True:
            send("alive")
            time.sleep(seconds)


def _send_failure(send: Callable[[str, str, Any], None], unit: NamedUnit, error: Exception) -> None:
    try:
        send("failed", unit.name, failure_of(unit, error))
    except FatalError:
        send("fatal", unit.name, str(error))
