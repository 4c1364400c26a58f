"""A crew: workers that load what the work needs once and take unit after unit, wherever they are."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from itertools import count
from typing import Any

import attrs
from attrs import validators

from mobileclip.engines.base import Engine
from mobileclip.engines.queue import Listener, Retries, UnitQueue
from mobileclip.engines.work import EntryT, FatalError, UnitT, Work
from mobileclip.engines.worker import Assignment, Message

# Heartbeats in the time after which their absence counts.
_HEARTBEATS = 10
# One that is made, and one that is finished beside it.
_UNITS_AT_ONCE = 2


@attrs.define(kw_only=True, eq=False)
class Member:
    """A worker, as the driver knows it.

    Args:
        number: of the worker.
        handle: what its transport knows it by.
        assignment: that it has.
        progressed: when it has last done a step.
        heard: when it was last heard; None before the first time.
        where: it is, for people; empty until it has begun.
        num_loading: assignments for which it has not loaded yet what they need; what it says is of the first of them.
        is_free: whether it may have another unit.
        units: what it has, by name; the last one is being made or waits for it.
    """

    number: int
    handle: Any
    assignment: Assignment
    progressed: float = attrs.field(factory=time.monotonic)
    heard: float | None = None
    where: str = ""
    num_loading: int = 1
    is_free: bool = True
    units: dict[str, Any] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """How it is called."""
        return f"worker {self.number} ({self.where})" if self.where else f"worker {self.number}"


class Transport(ABC):
    """Interface that starts workers, exchanges messages with them, and ends them."""

    queues_workers = False
    """Whether a worker may have to wait until there is room for it."""

    @abstractmethod
    def start(self) -> Any:
        """Start a worker, and return what it is known by."""

    @abstractmethod
    def send(self, member: Member, message: Any) -> None:
        """Send an assignment or a unit; that a worker is gone is found out by `receive`."""

    @abstractmethod
    def receive(self, members: Sequence[Member], seconds: float) -> Iterable[tuple[Member, Sequence[Message] | str]]:
        """Wait so many seconds at most; yield what some have said, or how one was lost."""

    def has_lost_machine(self, member: Member) -> bool:  # noqa: ARG002 - of most, none goes alone
        """Return whether the machine of a worker that is gone, is gone with it."""
        return False

    @abstractmethod
    def end(self, members: Iterable[Member]) -> None:
        """End workers at once, whatever they do."""


class Crew(Engine):
    """Workers that are reused from one kind of work to the next, with the units that each of them holds.

    Args:
        engine: whose choices count.
        reach: opens the transport to the workers, when there is work for some.
    """

    def __init__(self, engine: CrewEngine, reach: Callable[[], Transport]) -> None:
        self._engine, self._reach = engine, cache(reach)
        self._numbers = count()
        self._idle: list[Member] = []

    def most_workers(self, num_units: int) -> int:
        """Return how many workers there would be; see `Engine`."""
        return self._engine.most_workers(num_units)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        if (alone := self._engine.alone(len(units))) is not None:
            alone.run(work, units, listener)
            return
        self._transport = self._reach()
        num_workers = self.most_workers(len(units))
        self._queue: UnitQueue[Any, Any] = UnitQueue(
            units, self._engine.retries, listener, work.split, num_workers=num_workers
        )
        self._vacancies = deque(self._engine.assignments(work, num_workers))
        self._members: list[Member] = []
        self._looked = time.monotonic()
        try:
            while not self._queue.is_over:
                self._hire()
                self._assign()
                self._hear()
                self._end_hung()
        except BaseException:
            self._transport.end(self._members)
            raise
        self._idle += self._members

    def dismiss(self) -> None:
        """End the workers that have nothing to do."""
        if self._idle:
            self._transport.end(self._idle)

    def _hire(self) -> None:
        """Start as many workers as there is work for, or take those that are there."""
        num_wanted = self._queue.num_ready - sum(not member.units for member in self._members)
        hired = [self._member(self._vacancies.popleft()) for _ in range(min(num_wanted, len(self._vacancies)))]
        # A process takes large work when it has started, and they all start meanwhile.
        for member in hired:
            self._transport.send(member, member.assignment)

    def _member(self, assignment: Assignment) -> Member:
        """Return a worker for an assignment: one of this device that has nothing to do, or a new one."""
        idle = [one for one in self._idle if one.assignment.place.device == assignment.place.device]
        member = min(idle, key=lambda one: one.num_loading, default=None)
        if member is None:
            handle = self._transport.start()
            member = Member(number=next(self._numbers), handle=handle, assignment=assignment)
        else:
            self._idle.remove(member)
            member.assignment, member.is_free = assignment, True
            member.num_loading += 1
            member.progressed = time.monotonic()
            member.heard = None if member.heard is None else time.monotonic()
        self._members.append(member)
        return member

    def _assign(self) -> None:
        """Give units to those that can have one, first to those that have none."""
        for member in sorted(self._members, key=lambda one: len(one.units)):
            is_full = len(member.units) >= _UNITS_AT_ONCE or any(map(self._queue.is_suspect, member.units.values()))
            if is_full or member.num_loading or not member.is_free:
                continue
            unit = self._queue.take(member.name, is_idle=not member.units)
            if unit is None:
                return
            member.units[unit.name], member.is_free, member.progressed = unit, False, time.monotonic()
            self._transport.send(member, unit)

    def _hear(self) -> None:
        """Wait for words of the workers, no longer than until something else is due."""
        heartbeat = self._engine.heartbeat_seconds
        seconds = min(self._queue.seconds_to_next() or heartbeat, heartbeat)
        if not self._members:
            time.sleep(seconds)
            return
        for member, said in self._transport.receive(tuple(self._members), seconds):
            if isinstance(said, str):
                self._bury(member, said)
                continue
            member.heard = time.monotonic()
            for message in said:
                self._note(member, *message)

    def _note(self, member: Member, kind: str, name: str, value: Any) -> None:
        if kind == "fatal":
            raise FatalError(value)
        if kind == "ready":
            member.where = value
            member.num_loading -= 1
        if kind == "heartbeat" or member.num_loading:
            return
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

    def _end_hung(self) -> None:
        """End and replace workers that are stopped or stuck.

        Raises:
            ValueError: if none was ready in time.
        """
        now, engine = time.monotonic(), self._engine
        # The time in which this process was stopped itself, or its caller had it wait: nobody looked then.
        away, self._looked = max(0.0, now - self._looked - 2 * engine.heartbeat_seconds), now
        for member in self._members:
            member.progressed += away
            member.heard = None if member.heard is None else member.heard + away
        late = [member for member in self._members if now - member.progressed > engine.progress_seconds]
        if late and len(late) == len(self._members) and all(member.num_loading for member in late):
            raise ValueError(
                f"no worker was ready within {engine.progress_seconds:g} s: there is no room for one, or loading takes "
                "longer (progress_seconds)"
            )
        for member in tuple(self._members):
            if member.heard is not None and now - member.heard > engine.silence_seconds:
                how = f"gave no heartbeat for {engine.silence_seconds:g} s (it may have been stopped)"
            elif member in late and member.units:
                how = f"did no step of it for {engine.progress_seconds:g} s"
            elif member in late and member.num_loading and (member.heard or not self._transport.queues_workers):
                how = f"was not ready within {engine.progress_seconds:g} s"
            else:
                continue
            self._bury(member, how)

    def _bury(self, member: Member, how: str) -> None:
        """Give the place of a worker that is gone to another, and its units back."""
        with_machine = self._transport.has_lost_machine(member)
        self._transport.end([member])
        self._members.remove(member)
        self._vacancies.append(member.assignment)
        self._queue.lose(tuple(member.units.values()), member.name, how, with_machine=with_machine)


@attrs.frozen(kw_only=True)
class CrewEngine(Engine):
    """An engine whose workers are a crew; see those that are one."""

    silence_seconds: float = attrs.field(default=120.0, validator=validators.gt(0))
    progress_seconds: float = attrs.field(default=3600.0, validator=validators.gt(0))
    retries: Retries = attrs.field(factory=Retries)

    @property
    def heartbeat_seconds(self) -> float:
        """From one heartbeat of a worker to the next."""
        return min(self.silence_seconds, self.progress_seconds) / _HEARTBEATS

    @abstractmethod
    def transport(self) -> AbstractContextManager[Transport]:
        """Return what reaches workers."""

    @abstractmethod
    def assignments(self, work: Work[Any, Any], num_workers: int) -> Iterator[Assignment]:
        """Yield what so many workers are given."""

    def alone(self, num_units: int) -> Engine | None:  # noqa: ARG002 - of most engines, none is
        """Return what does so many units without a crew; None where a crew does."""
        return None

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        with self.kept() as engine:
            engine.run(work, units, listener)

    @contextmanager
    def kept(self) -> Iterator[Engine]:
        """Yield an engine whose workers stay from one work to the next; see `Engine`."""
        with ExitStack() as opened:
            crew = Crew(self, lambda: opened.enter_context(self.transport()))
            try:
                yield crew
            finally:
                crew.dismiss()
