"""Processes on this machine, one per device: each loads what the work needs once and takes unit after unit."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic

import attrs
from attrs import validators

from mobileclip.engines.base import Engine, default_num_threads
from mobileclip.engines.inline import InlineEngine
from mobileclip.engines.local_worker import Assignment, work_for
from mobileclip.engines.queue import Listener, Retries, UnitQueue
from mobileclip.engines.work import EntryT, FatalError, Place, UnitT, Work
from mobileclip.hardware.devices import all_devices, pick_device
from mobileclip.storage import StoreLimits

# Signs of life in the time after which their absence counts.
_BEATS = 10
_END_SECONDS = 5.0
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
        apart: whether one worker alone runs in a process of its own, too, so that no unit ends this one.
        retries: how often a unit that fails is tried.
        stores: how long stores are waited for.
    """

    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    devices: tuple[str, ...] = ()
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    silence_seconds: float = attrs.field(default=120.0, validator=validators.gt(0))
    progress_seconds: float = attrs.field(default=3600.0, validator=validators.gt(0))
    apart: bool = False
    retries: Retries = attrs.field(factory=Retries)
    stores: StoreLimits = attrs.field(factory=StoreLimits)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        with self.kept() as engine:
            engine.run(work, units, listener)

    def most_workers(self, num_units: int) -> int:
        """Return how many processes there would be; see `Engine`."""
        return max(1, min(self.num_workers or len(self.named_devices()), num_units))

    def named_devices(self) -> tuple[str, ...]:
        """Return the devices that the workers run on, in turn."""
        return tuple(str(pick_device(name)) for name in self.devices) or all_devices()

    @contextmanager
    def kept(self) -> Iterator[Engine]:
        """Yield an engine whose processes stay from one work to the next; see `Engine`."""
        kept = _KeptEngine(engine=self)
        try:
            yield kept
        finally:
            _dismiss(kept.idle)


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
        num_assignments: that it has got; what it says of an earlier one than the last comes too late.
        units: what it has, by name; the last one is being made or waits for it.
        is_free: whether it may have another one.
    """

    process: BaseProcess
    connection: Connection
    place: Place
    name: str
    progressed: float
    heard: float | None = None
    num_assignments: int = 0
    units: dict[str, UnitT] = attrs.field(factory=dict)
    is_free: bool = True


@attrs.frozen(kw_only=True, eq=False)
class _KeptEngine(Engine):
    """A local engine, and its processes that have nothing to do between two works.

    Args:
        engine: whose choices count.
        idle: the processes.
        numbers: of the next ones.
    """

    engine: LocalEngine
    idle: list[_Member[Any]] = attrs.field(factory=list)
    numbers: Iterator[int] = attrs.field(factory=count)

    def most_workers(self, num_units: int) -> int:
        """Return how many processes there would be; see `Engine`."""
        return self.engine.most_workers(num_units)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        engine = self.engine
        devices = engine.named_devices()
        num_workers = self.most_workers(len(units))
        places = [
            Place(device=device, num_threads=engine.num_threads or default_num_threads(device, num_workers))
            for device in (devices[index % len(devices)] for index in range(num_workers))
        ]
        if num_workers == 1 and not engine.apart:
            (place,) = places
            alone = InlineEngine(
                device=place.device, num_threads=place.num_threads, retries=engine.retries, stores=engine.stores
            )
            alone.run(work, units, listener)
        else:
            _Crew(self, work, places, UnitQueue(units, engine.retries, listener, work.split)).run()


class _Crew(Generic[UnitT, EntryT]):
    """The processes of a run, and who does what.

    Args:
        kept: the engine, with the processes that are there already; those of this run stay with it.
        work: what is done.
        places: of the workers.
        queue: the units.
    """

    def __init__(
        self,
        kept: _KeptEngine,
        work: Work[UnitT, EntryT],
        places: Sequence[Place],
        queue: UnitQueue[UnitT, EntryT],
    ) -> None:
        self._kept = kept
        self._engine = engine = kept.engine
        self._work = work
        self._num_workers = len(places)
        self._places = deque(places)
        self._queue = queue
        self._members: list[_Member[UnitT]] = []
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
        except BaseException:
            _dismiss(self._members)
            raise
        self._kept.idle.extend(self._members)

    def _assign(self) -> None:
        """Hire as many as there is work for, and give those that are free a unit."""
        num_free = sum(member.is_free and not member.units for member in self._members)
        places = [self._places.popleft() for _ in range(min(len(self._places), self._queue.num_ready - num_free))]
        hired = [self._idle_at(place) or self._start(place) for place in places]
        self._members += hired
        # A process takes large work when it has started, and they all start meanwhile.
        for member in hired:
            self._brief(member)
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
                number, kind, name, value = member.connection.recv()
            except (EOFError, OSError):
                member.process.join()
                how = f"ended with exit code {member.process.exitcode} (-9: killed, often for too much memory)"
                self._bury(member, how)
                continue
            member.heard = time.monotonic()
            if number == member.num_assignments or kind == "fatal":
                self._note(member, kind, name, value)

    def _note(self, member: _Member[UnitT], kind: str, name: str, value: Any) -> None:
        if kind != "alive":
            member.progressed = time.monotonic()
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

    def _brief(self, member: _Member[UnitT]) -> None:
        """Give a process the work of this run."""
        member.num_assignments += 1
        member.progressed = time.monotonic()
        assignment = Assignment(
            number=member.num_assignments, work=self._work, place=member.place, num_workers=self._num_workers
        )
        with suppress(OSError):  # it died; reading from it will tell
            member.connection.send(assignment)

    def _idle_at(self, place: Place) -> _Member[UnitT] | None:
        """Return a process that has worked at the place's device, with what it said meanwhile; None without one."""
        for member in [one for one in self._kept.idle if one.place.device == place.device]:
            self._kept.idle.remove(member)
            if member.process.is_alive():
                member.place, member.heard, member.is_free = place, time.monotonic(), True
                return member
            _dismiss([member])
        return None

    def _start(self, place: Place) -> _Member[UnitT]:
        own_end, other_end = self._context.Pipe()
        process = self._context.Process(
            target=work_for,
            args=(other_end,),
            kwargs={"beat_seconds": self._beat_seconds, "stores": self._engine.stores},
            daemon=True,
        )
        process.start()
        # The child's death must be the end of the pipe, so no one else may hold that end.
        other_end.close()
        name = f"worker {next(self._kept.numbers)} ({place.device}, process {process.pid})"
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


def _dismiss(members: list[_Member[Any]]) -> None:
    """End processes; one that is stopped does not hear that it is asked to, and is killed."""
    for member in members:
        member.connection.close()
        member.process.terminate()
    for member in members:
        member.process.join(_END_SECONDS)
        if member.process.is_alive():
            member.process.kill()
            member.process.join()
    members.clear()
