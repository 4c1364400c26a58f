"""The queue of a run's units: which one is next, how often a failing one is tried, and who hears of the results."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Generic

import attrs
from attrs import validators

from mobileclip.engines.set_aside import SetAside
from mobileclip.engines.work import RUN_AGAIN, EntryT, Failure, FatalError, UnitT, reason_of
from mobileclip.storage import printable
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Workers that are lost one after another, with no unit finished in between: it is not the units then. Of many workers,
# one power failure takes many.
_MOST_LOST, _MOST_LOST_PER_WORKER = 30, 10
# After so many tries of a unit that has parts, these are tried.
_TRIES_WHOLE = 2


@attrs.frozen(kw_only=True, field_transformer=strict)
class Retries:
    """Retry limits for units that fail for a passing reason: a store, a network, a disk, memory, a lost worker.

    One whose input is broken, missing or closed to this user is not tried again.

    Args:
        tries: in all; then it is set aside, and the run goes on.
        pause_seconds: before the second try; other units are done meanwhile.
        pause_growth: how many times as long each further pause is.
    """

    tries: int = attrs.field(default=3, validator=validators.gt(0))
    pause_seconds: float = attrs.field(default=10.0, validator=validators.ge(0))
    pause_growth: float = attrs.field(default=4.0, validator=validators.ge(1))

    def pause(self, num_failed: int) -> float:
        """Return the seconds after so many failed tries."""
        return float(self.pause_seconds * self.pause_growth ** (num_failed - 1))


class Listener(Generic[UnitT, EntryT]):
    """Callbacks for finished and failed units, one call at a time, maybe in another thread; an error ends the run."""

    def begun(self, unit: UnitT, worker: str) -> None:
        """A worker has got a unit."""

    def advanced(self, count: int) -> None:
        """So many steps of units were done since the last call."""

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """A unit is finished."""

    def failed(self, unit: UnitT, reason: str, pause_seconds: float) -> None:
        """A unit has failed, and is tried again after a pause."""

    def lost(self, unit: UnitT, reason: str) -> None:
        """The machine that had a unit is gone; another worker gets the unit, and this is no try of it."""

    def divided(self, unit: UnitT, reason: str, parts: Sequence[UnitT]) -> None:
        """A unit has failed again, and smaller ones are tried in its place."""

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """A unit has failed too often, or of what no other try would change."""


class UnitQueue(Generic[UnitT, EntryT]):
    """The units that wait, and those that workers have; it may be used by several threads.

    Args:
        units: in the order in which they are begun.
        retries: how often each is tried.
        listener: who is told.
        split: returns smaller units that one which keeps failing is tried as, see `Work`.
        num_workers: that share the units.
    """

    def __init__(
        self,
        units: Iterable[UnitT],
        retries: Retries,
        listener: Listener[UnitT, EntryT],
        split: Callable[[UnitT], Sequence[UnitT]],
        *,
        num_workers: int = 1,
    ) -> None:
        self._fresh = deque(units)
        self._retries = retries
        self._listener = listener
        self._split = split
        self._parts: set[str] = set()
        self._failed: list[tuple[float, int, UnitT]] = []
        self._order = count()
        self._num_failures: dict[str, int] = {}
        self._under_way: dict[str, UnitT] = {}
        self._suspects: set[str] = set()
        self._num_lost, self._most_lost = 0, max(_MOST_LOST, _MOST_LOST_PER_WORKER * num_workers)
        self._lock = threading.RLock()

    @property
    def num_ready(self) -> int:
        """How many a worker may have now."""
        with self._lock:
            now = time.monotonic()
            return len(self._fresh) + sum(ready <= now for ready, _, _ in self._failed)

    @property
    def is_over(self) -> bool:
        """Whether every unit is finished or set aside."""
        with self._lock:
            return not (self._fresh or self._failed or self._under_way)

    def seconds_to_next(self) -> float:
        """Return how long it is until a unit that waits may be tried; 0 where one may now, or none waits."""
        with self._lock:
            if self._fresh or not self._failed:
                return 0.0
            return max(0.0, self._failed[0][0] - time.monotonic())

    def take(self, worker: str, *, is_idle: bool = True) -> UnitT | None:
        """Return a unit for a worker, or None where there is none, none yet, or one that it must have alone.

        Args:
            worker: its name.
            is_idle: whether it has no other unit.
        """
        with self._lock:
            if self._failed and self._failed[0][0] <= time.monotonic():
                if not is_idle and self.is_suspect(self._failed[0][2]):
                    return None
                unit = heapq.heappop(self._failed)[2]
            elif self._fresh:
                unit = self._fresh.popleft()
            else:
                return None
            self._under_way[unit.name] = unit
            self._listener.begun(unit, worker)
            return unit

    def is_suspect(self, unit: UnitT) -> bool:
        """Return whether a worker was lost that had the unit, which is tried alone then: a second loss is its own."""
        return unit.name in self._suspects

    def advance(self, count: int) -> None:
        """Tell of steps; in the midst of a unit, which is not to blame for what a listener raises."""
        with self._lock:
            try:
                self._listener.advanced(count)
            except FatalError:
                raise
            except Exception as error:
                raise FatalError(f"the run cannot be followed any more: {reason_of(error)}") from error

    def finish(self, unit: UnitT, entry: EntryT) -> None:
        """Take note of a finished unit."""
        with self._lock:
            self._num_lost = 0
            del self._under_way[unit.name]
            self._listener.finished(unit, entry)

    def fail(self, unit: UnitT, failure: Failure) -> None:
        """Take note of a failed try.

        Raises:
            FatalError: if it was the last one, and the machine is to blame.
        """
        reason = failure.reason
        with self._lock:
            del self._under_way[unit.name]
            num_failed = self._num_failures[unit.name] = self._num_failures.get(unit.name, 0) + 1
            is_last = num_failed >= self._retries.tries or not failure.is_transient
            # Of a unit that has failed twice, some part fails: that one is looked for without another pause.
            is_known = is_last or num_failed == _TRIES_WHOLE or unit.name in self._parts
            if is_known and (parts := self._split(unit)):
                self._divide(unit, reason, parts)
                return
            if is_last and failure.is_machines:
                raise FatalError(f"{reason}; {RUN_AGAIN}")
            if is_last:
                self._listener.gave_up(unit, SetAside(unit=unit.name, reason=reason, tries=num_failed))
                return
            pause = self._retries.pause(num_failed)
            heapq.heappush(self._failed, (time.monotonic() + pause, next(self._order), unit))
            self._listener.failed(unit, reason, pause)

    def _divide(self, unit: UnitT, reason: str, parts: Sequence[UnitT]) -> None:
        """Have the parts of a unit tried in its place, alone where it was."""
        names = [part.name for part in parts]
        self._parts.update(names)
        if self.is_suspect(unit):
            self._suspects.update(names)
        for part in parts:
            heapq.heappush(self._failed, (time.monotonic(), next(self._order), part))
        self._listener.divided(unit, reason, parts)

    def lose(self, units: Sequence[UnitT], worker: str, how: str, *, with_machine: bool = False) -> None:
        """Take note of a worker that is gone, and of the units that it had: each of them may be what it died of.

        Args:
            units: that it had.
            worker: its name.
            how: it was lost.
            with_machine: whether its whole machine is gone, of which no unit is to blame.

        Raises:
            ValueError: if very many are lost one after another.
        """
        with self._lock:
            self._num_lost += 1
            logger.warning("%s %s; it had %s", worker, how, ", ".join(unit.name for unit in units) or "no unit")
            for unit in units:
                if with_machine:
                    del self._under_way[unit.name]
                    heapq.heappush(self._failed, (time.monotonic(), next(self._order), unit))
                    self._listener.lost(unit, f"the machine of a worker that had it is gone: it {how}")
                else:
                    self._suspects.add(unit.name)
                    self.fail(unit, Failure(reason=f"a worker that had it {how}", is_transient=True))
            if self._num_lost >= self._most_lost:
                raise ValueError(
                    f"{self._num_lost} workers were lost one after another, the last {printable(how)}; try a smaller "
                    "batch_size or fewer workers. What is finished is kept"
                )
