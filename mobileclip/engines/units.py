"""Defines units of work, the processing of a unit, the queue of units, and retries of failed units."""

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

_RUN_AGAIN = "then run this again; finished work is saved"
# Maximum number of workers lost without a finished unit in between; if more are lost, the units are not the cause. The
# limit grows with the number of workers, since one power failure may stop many workers.
_MOST_LOST, _MOST_LOST_PER_WORKER = 30, 10
# Number of failed attempts before a unit is split.
_TRIES_WHOLE = 2

OnProgress = Callable[[int], None]
"""Callback with the number of steps, such as samples, since the last call."""


class NamedUnit(Protocol):
    """A unit of work: a picklable value with a unique name."""

    @property
    def name(self) -> str:
        """Name of the unit, unique in a run."""


UnitT = TypeVar("UnitT", bound=NamedUnit)
EntryT = TypeVar("EntryT")
UnitT_contra = TypeVar("UnitT_contra", bound=NamedUnit, contravariant=True)
EntryT_co = TypeVar("EntryT_co", covariant=True)


class FatalError(ValueError):
    """An error that ends the run because retries cannot succeed, such as a full disk."""


@attrs.frozen(kw_only=True)
class WorkerResources:
    """The device and the number of CPU threads of a worker.

    Args:
        device: device such as `cpu` or `cuda:1`.
        num_threads: maximum number of CPU threads.
    """

    device: str
    num_threads: int = attrs.field(validator=validators.gt(0))


class Worker(Protocol[UnitT_contra, EntryT_co]):
    """A callable that processes units with resources that `Work.open` loaded once."""

    def __call__(self, unit: UnitT_contra, on_progress: OnProgress, /) -> Callable[[], EntryT_co]:
        """Process a unit, and return a function that finishes the unit and returns the unit's entry.

        The caller runs the returned function in another thread, while the worker processes the next unit. The call
        starts the computation on the device without waiting for the end; the returned function copies results from the
        device and uploads the results.

        Raises:
            FatalError: if a retry cannot succeed for any unit, such as on a full disk; the run ends.
            ValueError: if the input of the unit is broken, so a retry cannot succeed. The unit fails immediately.
            OSError: if a file is missing or not accessible; the unit fails immediately. A transient error (see
                `is_transient` in `mobileclip.storage`) leads to a retry.
            Exception: any other error, which leads to a retry.
        """


class Work(ABC, Generic[UnitT, EntryT]):
    """Base class of work, which loads resources and processes units; instances must be picklable."""

    @abstractmethod
    def open(self, resources: WorkerResources) -> Worker[UnitT, EntryT]:
        """Load the resources on a device, and return a worker.

        Raises:
            ValueError: if the resources cannot be loaded; the run ends.
        """

    def split(self, unit: UnitT) -> Sequence[UnitT]:  # noqa: ARG002 - units of most kinds of work have no parts
        """Split a failing unit into smaller units with unique names; return no units by default.

        After splitting, only the smaller unit that contains the cause of the failure fails again.

        Args:
            unit: unit that failed twice, or failed with an error that a retry cannot fix.
        """
        return ()


@attrs.frozen(kw_only=True)
class FunctionWork(Work[UnitT, EntryT]):
    """Work that calls a plain function for each unit, without resources and without a second thread.

    Args:
        function: function from a unit to its entry; a module-level function, which other processes can import, or a
            `functools.partial` of a module-level function.
    """

    function: Callable[[UnitT], EntryT]

    def open(self, resources: WorkerResources) -> Worker[UnitT, EntryT]:  # noqa: ARG002 - the same worker for all resources
        """Return the function as a worker."""
        return self._make

    def _make(self, unit: UnitT, _on_progress: OnProgress, /) -> Callable[[], EntryT]:
        entry = self.function(unit)
        return lambda: entry


@attrs.frozen(kw_only=True, field_transformer=strict)
class SetAside:
    """A unit that failed all attempts; the next run tries the unit again.

    Args:
        unit: name of the unit.
        reason: reason of the last failure, in one line.
        tries: number of failed attempts.
    """

    unit: str
    reason: str
    tries: int = attrs.field(validator=validators.gt(0))


@attrs.frozen(kw_only=True, field_transformer=strict)
class Retries:
    """Limits for retrying units after transient failures of a store, network, disk, memory or worker.

    Engines do not retry units with broken, missing or forbidden input.

    Args:
        tries: maximum number of attempts for a unit. After the last attempt, the unit counts as failed, and the run
            continues.
        pause_seconds: pause before the second attempt, in seconds, while other units run.
        pause_growth: factor from one pause to the next.
    """

    tries: int = attrs.field(default=3, validator=validators.gt(0))
    pause_seconds: float = attrs.field(default=10.0, validator=validators.ge(0))
    pause_growth: float = attrs.field(default=4.0, validator=validators.ge(1))


@attrs.frozen(kw_only=True)
class Failure:
    """The reason why an attempt with a unit failed.

    Args:
        reason: message of the error, in one line.
        is_transient: whether a retry may succeed; otherwise the unit fails immediately.
        is_machines: whether the machine is the cause, for example because memory is full. A failure with this cause in
            the last attempt ends the run.
    """

    reason: str
    is_transient: bool
    is_machines: bool = False


def reason_of(error: Exception) -> str:
    """Return the message of an error in one line; for an internal error, with the class name in front."""
    text = " ".join(without_secrets(error).split())
    return text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def fatal_of(error: Exception) -> str:
    """Return the message of a worker's fatal error in one line, and log the traceback of an internal error."""
    if (fault := machine_fault(error)) is not None:
        return f"{fault}; {_RUN_AGAIN}"
    if not isinstance(error, (ValueError, OSError, ImportError)):
        logger.warning("a worker failed", exc_info=error)
    return str(error) if isinstance(error, ValueError) else f"a worker failed to start: {reason_of(error)}"


def failure_of(unit: NamedUnit, error: Exception) -> Failure:
    """Return a unit's failure with the decision about a retry, and log the traceback of an internal error.

    Raises:
        FatalError: if the error is a `FatalError`, or the machine's disk or shared memory is full.
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
    """Callbacks for the events of units, called one at a time, in any thread; an error in a callback ends the run."""

    def begun(self, unit: UnitT, worker: str) -> None:
        """Handle the start of a unit in a worker."""

    def advanced(self, count: int) -> None:
        """Handle progress by a number of steps since the last call."""

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Handle a finished unit and its entry."""

    def failed(self, unit: UnitT, reason: str, pause_seconds: float) -> None:
        """Handle a failed attempt; a retry follows after a pause."""

    def lost(self, unit: UnitT, reason: str) -> None:
        """Handle the loss of a unit's machine, which is not a failed attempt; another worker gets the unit."""

    def divided(self, unit: UnitT, reason: str, parts: Sequence[UnitT]) -> None:
        """Handle a unit that failed and was split into smaller units."""

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Handle a unit that failed all attempts, or failed with an error that a retry cannot fix."""


class ResultCallback(Listener[UnitT, EntryT]):
    """A listener that calls one function for every finished or failed unit, in order of completion.

    Args:
        take: callback with a unit and the unit's entry, or with a unit and a `SetAside` if the unit failed.
    """

    def __init__(self, take: Callable[[UnitT, EntryT | SetAside], None]) -> None:
        self._take = take

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Pass a finished unit and the unit's entry to `take`."""
        self._take(unit, entry)

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Pass a failed unit and the reason of the failure to `take`."""
        self._take(unit, aside)


class TaskQueue(Generic[UnitT, EntryT]):
    """A thread-safe queue of waiting units, which also tracks the units in progress.

    Args:
        units: units in the order in which workers start the units.
        retries: limits for retrying failed units.
        listener: listener that receives the results.
        split: function that returns smaller units for a failing unit, see `Work.split`.
        num_workers: number of workers that share the queue.
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
        """Close the queue, so that workers get no further units."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait for an available unit and return True; return False at the end of the run or of all units."""
        with self._changed:
            while not self.is_over:
                seconds = 0.0 if self._fresh else self._again[0][0] - time.monotonic() if self._again else None
                if seconds is not None and seconds <= 0:
                    return True
                self._changed.wait(seconds)
            return False

    def take(self, worker: str, *, is_idle: bool = True) -> UnitT | None:
        """Return the next unit for a worker; None if no unit is available, or if the next unit needs an idle worker.

        Args:
            worker: name of the worker, for the listener.
            is_idle: whether the worker has no other unit.
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
        """Return whether a unit was lost with a worker; the next attempt must run alone to find the cause."""
        return unit.name in self._suspects

    def advance(self, num_steps: int) -> None:
        """Report steps to the listener; an error in the listener ends the run, but is no failed attempt of a unit."""
        with self._changed:
            try:
                self._listener.advanced(num_steps)
            except FatalError:
                raise
            except Exception as error:
                raise FatalError(f"the progress of the run can no longer be reported: {reason_of(error)}") from error

    def finish(self, unit: UnitT, entry: EntryT) -> None:
        """Record a finished unit."""
        with self._changed:
            self._num_lost = 0
            self._give_back(unit)
            self._listener.finished(unit, entry)

    def fail(self, unit: UnitT, failure: Failure) -> None:
        """Record a failed attempt with a unit, and split, retry or give up the unit.

        Raises:
            FatalError: if the machine is the cause of the failure, and no attempt is left.
        """
        reason = failure.reason
        with self._changed:
            self._give_back(unit)
            self._num_failures[unit.name] += 1
            num_failed = self._num_failures[unit.name]
            is_last = num_failed >= self._retries.tries or not failure.is_transient
            # A unit that has failed twice contains the cause; finding it in smaller units needs no further pause.
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
        """Record a lost worker and its units, each of which may be the cause of the loss.

        Args:
            units: unfinished units of the worker.
            worker: name of the worker, for messages.
            how: kind of the loss, as a predicate such as `made no progress for 60 s`.
            with_machine: whether the whole machine was lost, in which case no unit is the cause.

        Raises:
            ValueError: if too many workers are lost without a finished unit in between.
        """
        with self._changed:
            self._num_lost += 1
            logger.warning("%s %s; its units: %s", worker, how, ", ".join(unit.name for unit in units) or "none")
            for unit in units:
                if with_machine:
                    self._give_back(unit)
                    self._put_back([unit])
                    self._listener.lost(unit, f"the machine of its worker was lost: the worker {how}")
                else:
                    self._suspects.add(unit.name)
                    self.fail(unit, Failure(reason=f"its worker {how}", is_transient=True))
            if self._num_lost >= self._most_lost:
                raise ValueError(
                    f"{self._num_lost} workers were lost without a finished unit in between, the last one "
                    f"{printable(how)}; try a smaller batch_size or fewer workers. Finished work is saved"
                )

    def _give_back(self, unit: UnitT) -> None:
        self._under_way.remove(unit.name)
        self._changed.notify_all()

    def _put_back(self, units: Iterable[UnitT], pause: float = 0.0) -> None:
        for unit in units:
            heapq.heappush(self._again, (time.monotonic() + pause, next(self._order), unit))
