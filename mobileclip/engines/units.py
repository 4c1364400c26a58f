"""Named units of work: the work on a unit, the queue, and retries of failed units."""

from __future__ import annotations

import heapq
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Generic, Protocol, TypeVar

import attrs
from attrs import validators

from mobileclip.machine import ResourceExhaustedError, machine_fault
from mobileclip.storage import is_transient, printable, without_secrets
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

_RUN_AGAIN = "then run this again: finished work is kept"
# Workers that are lost one after another, with no unit finished in between: it is not the units then. Of many workers,
# one power failure takes many.
_MOST_LOST, _MOST_LOST_PER_WORKER = 30, 10
# After so many tries of a unit that has parts, these are tried.
_TRIES_WHOLE = 2

OnProgress = Callable[[int], None]
"""Called with the number of steps, samples for instance, that were done since the last call."""


class NamedUnit(Protocol):
    """A part of the work: a picklable value with a unique name."""

    @property
    def name(self) -> str:
        """The name, unique in a run."""


UnitT = TypeVar("UnitT", bound=NamedUnit)
EntryT = TypeVar("EntryT")
UnitT_contra = TypeVar("UnitT_contra", bound=NamedUnit, contravariant=True)
EntryT_co = TypeVar("EntryT_co", covariant=True)


class FatalError(ValueError):
    """An error that retries cannot fix, such as a full disk; it ends the run."""


@attrs.frozen(kw_only=True)
class Place:
    """The device and the number of CPU threads of a worker.

    Args:
        device: such as `cpu` or `cuda:1`.
        num_threads: how many it may use.
    """

    device: str
    num_threads: int = attrs.field(validator=validators.gt(0))


class Worker(Protocol[UnitT_contra, EntryT_co]):
    """Makes units with resources that it loaded once."""

    def __call__(self, unit: UnitT_contra, on_progress: OnProgress, /) -> Callable[[], EntryT_co]:
        """Make a unit, and return what finishes it and gives its entry, in another thread, while the next one is made.

        What is called for the device begins in the making, and may end beside the next one's; what reads back and
        uploads belongs into the finishing.

        Raises:
            FatalError: if the run cannot go on.
            ValueError: if the unit cannot be made and another try would change nothing: its input is broken. It is set
                aside at once.
            OSError: the same where a file is missing or closed to this user. What may succeed later (`is_transient` of
                `mobileclip.storage`) is tried again.
            Exception: of any other kind, which tells nothing of the input, is tried again.
        """


class Work(ABC, Generic[UnitT, EntryT]):
    """The function that processes units, picklable so that any process can run it."""

    @abstractmethod
    def open(self, place: Place) -> Worker[UnitT, EntryT]:
        """Return a worker with loaded resources.

        Raises:
            ValueError: if that cannot be loaded; the run ends.
        """

    def split(self, unit: UnitT) -> Sequence[UnitT]:  # noqa: ARG002 - of most kinds of work, a unit has no parts
        """Return smaller units with unique names in place of a failing unit; none by default.

        So only the failing part of a unit fails, and the other parts succeed.

        Args:
            unit: failed twice, or not worth a retry.
        """
        return ()


@attrs.frozen(kw_only=True)
class FunctionWork(Work[UnitT, EntryT]):
    """Work by a plain function of a unit, without loading and finishing.

    Args:
        function: function of a module, so that other processes find it; `functools.partial` of one does too.
    """

    function: Callable[[UnitT], EntryT]

    def open(self, place: Place) -> Worker[UnitT, EntryT]:  # noqa: ARG002 - it is the same everywhere
        """Return the function as a worker."""
        return self._make

    def _make(self, unit: UnitT, _on_progress: OnProgress, /) -> Callable[[], EntryT]:
        entry = self.function(unit)
        return lambda: entry


@attrs.frozen(kw_only=True, field_transformer=strict)
class SetAside:
    """A unit that failed after all tries; the next run tries it again.

    Args:
        unit: its name.
        reason: reason of the last failure.
        tries: how often it failed.
    """

    unit: str
    reason: str
    tries: int = attrs.field(validator=validators.gt(0))


@attrs.frozen(kw_only=True, field_transformer=strict)
class Retries:
    """Retry limits for units that fail for a passing reason: a store, a network, a disk, memory, a lost worker.

    Units with broken, missing or forbidden input are not retried.

    Args:
        tries: number of tries before the unit counts as failed and the run continues.
        pause_seconds: before the second try; other units run meanwhile.
        pause_growth: factor from one pause to the next.
    """

    tries: int = attrs.field(default=3, validator=validators.gt(0))
    pause_seconds: float = attrs.field(default=10.0, validator=validators.ge(0))
    pause_growth: float = attrs.field(default=4.0, validator=validators.ge(1))


@attrs.frozen(kw_only=True)
class Failure:
    """Why a try of a unit failed.

    Args:
        reason: in a line.
        is_transient: whether a retry may succeed; otherwise the unit fails at once.
        is_machines: whether the machine is the cause (memory, for example): then the last failed try ends the run.
    """

    reason: str
    is_transient: bool
    is_machines: bool = False


def reason_of(error: Exception) -> str:
    """Return an error's message in one line, with its class if it is an internal error."""
    text = " ".join(without_secrets(error).split())
    return text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def fatal_of(error: Exception) -> str:
    """Return a worker's fatal error in one line, and log internal errors with their traceback."""
    if (fault := machine_fault(error)) is not None:
        return f"{fault}; {_RUN_AGAIN}"
    if not isinstance(error, (ValueError, OSError, ImportError)):
        logger.warning("a worker failed", exc_info=error)
    return str(error) if isinstance(error, ValueError) else f"a worker cannot work: {reason_of(error)}"


def failure_of(unit: NamedUnit, error: Exception) -> Failure:
    """Return a unit's failure and whether to retry it, and log internal errors with their traceback.

    Raises:
        FatalError: if the error is one, or the machine's disk or shared memory is full.
    """
    if isinstance(error, FatalError):
        raise error
    if (fault := machine_fault(error)) is not None:
        if not fault.may_pass:
            raise FatalError(
                f"{error if isinstance(error, ResourceExhaustedError) else fault}; {_RUN_AGAIN}"
            ) from error
        return Failure(reason=str(fault), is_transient=True, is_machines=True)
    is_for_people = isinstance(error, (ValueError, OSError))
    if not is_for_people:
        logger.warning("%s failed", unit.name, exc_info=error)
    return Failure(reason=reason_of(error), is_transient=not is_for_people or is_transient(error))


class Listener(Generic[UnitT, EntryT]):
    """Callbacks for finished and failed units, one at a time, in any thread; an error in a callback ends the run."""

    def begun(self, unit: UnitT, worker: str) -> None:
        """A worker has got a unit."""

    def advanced(self, count: int) -> None:
        """Steps of units were done since the last call."""

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """A unit is finished."""

    def failed(self, unit: UnitT, reason: str, pause_seconds: float) -> None:
        """A unit failed, and will be retried after a pause."""

    def lost(self, unit: UnitT, reason: str) -> None:
        """The machine of a unit was lost; another worker gets the unit, without counting a try."""

    def divided(self, unit: UnitT, reason: str, parts: Sequence[UnitT]) -> None:
        """A unit failed again; smaller units replace it."""

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """A unit failed all tries, or is not worth a retry."""


class EachResult(Listener[UnitT, EntryT]):
    """Calls one function for every finished or failed unit, in order of completion.

    Args:
        take: called with a unit and its entry, or the reason of its failure.
    """

    def __init__(self, take: Callable[[UnitT, EntryT | SetAside], None]) -> None:
        self._take = take

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Pass the entry on."""
        self._take(unit, entry)

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Pass on that there is none."""
        self._take(unit, aside)


class TaskQueue(Generic[UnitT, EntryT]):
    """The units that wait, and those that workers have; it may be used by several threads.

    Args:
        units: in order of start.
        retries: retries of failing units.
        listener: receives the results.
        split: returns smaller units of a failing unit, see `Work`.
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
        self._retries, self._listener, self._split = retries, listener, split
        self._parts: set[str] = set()
        self._again: list[tuple[float, int, UnitT]] = []
        self._order = count()
        self._num_failures: Counter[str] = Counter()
        self._under_way: set[str] = set()
        self._suspects: set[str] = set()
        self._num_lost, self._most_lost = 0, max(_MOST_LOST, _MOST_LOST_PER_WORKER * num_workers)
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def is_over(self) -> bool:
        """Whether every unit finished or failed, or the run ended."""
        with self._changed:
            return self._is_closed or not (self._fresh or self._again or self._under_way)

    def close(self) -> None:
        """Give out no more units."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait until a unit may be taken, and return True; or until all is over, and return False."""
        with self._changed:
            while not self.is_over:
                seconds = 0.0 if self._fresh else self._again[0][0] - time.monotonic() if self._again else None
                if seconds is not None and seconds <= 0:
                    return True
                self._changed.wait(seconds)
            return False

    def take(self, worker: str, *, is_idle: bool = True) -> UnitT | None:
        """Return a unit for a worker, or None if there is none, none yet, or one that it must have alone.

        Args:
            worker: its name.
            is_idle: whether it has no other unit.
        """
        with self._changed:
            if self._is_closed:
                return None
            if self._again and self._again[0][0] <= time.monotonic():
                if not is_idle and self.is_suspect(self._again[0][2]):
                    return None
                unit = heapq.heappop(self._again)[2]
            elif self._fresh:
                unit = self._fresh.popleft()
            else:
                return None
            self._under_way.add(unit.name)
            self._listener.begun(unit, worker)
            return unit

    def is_suspect(self, unit: UnitT) -> bool:
        """Return whether a worker was lost that had the unit, which is tried alone then: a second loss is its own."""
        return unit.name in self._suspects

    def advance(self, num_steps: int) -> None:
        """Tell of steps; in the midst of a unit, which is not to blame for what a listener raises."""
        with self._changed:
            try:
                self._listener.advanced(num_steps)
            except FatalError:
                raise
            except Exception as error:
                raise FatalError(f"the run cannot be followed any more: {reason_of(error)}") from error

    def finish(self, unit: UnitT, entry: EntryT) -> None:
        """Take note of a finished unit."""
        with self._changed:
            self._num_lost = 0
            self._give_back(unit)
            self._listener.finished(unit, entry)

    def fail(self, unit: UnitT, failure: Failure) -> None:
        """Take note of a failed try.

        Raises:
            FatalError: if it was the last one, and the machine is to blame.
        """
        reason = failure.reason
        with self._changed:
            self._give_back(unit)
            self._num_failures[unit.name] += 1
            num_failed = self._num_failures[unit.name]
            is_last = num_failed >= self._retries.tries or not failure.is_transient
            # Of a unit that has failed twice, some part fails: that one is looked for without another pause.
            is_known = is_last or num_failed == _TRIES_WHOLE or unit.name in self._parts
            if is_known and (parts := self._split(unit)):
                names = [part.name for part in parts]
                self._parts.update(names)
                if self.is_suspect(unit):
                    self._suspects.update(names)
                self._put_back(parts)
                self._listener.divided(unit, reason, parts)
            elif is_last and failure.is_machines:
                raise FatalError(f"{reason}; {_RUN_AGAIN}")
            elif is_last:
                self._listener.gave_up(unit, SetAside(unit=unit.name, reason=reason, tries=num_failed))
            else:
                pause = self._retries.pause_seconds * self._retries.pause_growth ** (num_failed - 1)
                self._put_back([unit], pause)
                self._listener.failed(unit, reason, pause)

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
        with self._changed:
            self._num_lost += 1
            logger.warning("%s %s; it had %s", worker, how, ", ".join(unit.name for unit in units) or "no unit")
            for unit in units:
                if with_machine:
                    self._give_back(unit)
                    self._put_back([unit])
                    self._listener.lost(unit, f"the machine of a worker that had it is gone: it {how}")
                else:
                    self._suspects.add(unit.name)
                    self.fail(unit, Failure(reason=f"a worker that had it {how}", is_transient=True))
            if self._num_lost >= self._most_lost:
                raise ValueError(
                    f"{self._num_lost} workers were lost one after another, the last {printable(how)}; try a smaller "
                    "batch_size or fewer workers. Finished work is kept"
                )

    def _give_back(self, unit: UnitT) -> None:
        self._under_way.remove(unit.name)
        self._changed.notify_all()

    def _put_back(self, units: Iterable[UnitT], pause: float = 0.0) -> None:
        for unit in units:
            heapq.heappush(self._again, (time.monotonic() + pause, next(self._order), unit))
