"""Defines units of work, the work on a unit, the queue of units, and retries of failed units."""

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
# Maximum number of workers lost without a finished unit in between; beyond it, the units are not the cause. The limit
# grows with the number of workers, since one power failure may stop many.
_MOST_LOST, _MOST_LOST_PER_WORKER = 30, 10
# Number of failed attempts before a unit is split.
_TRIES_WHOLE = 2

OnProgress = Callable[[int], None]
"""Callback with the number of steps since the last call, such as samples."""


class NamedUnit(Protocol):
    """A unit of work: a picklable value with a unique name."""

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
        device: device such as `cpu` or `cuda:1`.
        num_threads: maximum number of CPU threads.
    """

    device: str
    num_threads: int = attrs.field(validator=validators.gt(0))


class Worker(Protocol[UnitT_contra, EntryT_co]):
    """Processes units with resources that are loaded once."""

    def __call__(self, unit: UnitT_contra, on_progress: OnProgress, /) -> Callable[[], EntryT_co]:
        """Process a unit, and return a function that finishes the unit and returns its entry.

        The caller runs the returned function in another thread, while the worker processes the next unit. Start work on
        the device in the call, without waiting for its end; read results back and upload in the returned function.

        Raises:
            FatalError: if a retry cannot succeed for any unit, such as on a full disk; the run ends.
            ValueError: if the input of the unit is broken, so a retry cannot succeed. The unit fails immediately.
            OSError: if a file is missing or not accessible; the unit fails immediately. Transient errors (see
                `is_transient` in `mobileclip.storage`) lead to a retry.
            Exception: any other error, which leads to a retry.
        """


class Work(ABC, Generic[UnitT, EntryT]):
    """The processing of units, picklable so that any process can run the work."""

    @abstractmethod
    def open(self, place: Place) -> Worker[UnitT, EntryT]:
        """Load the resources and return a worker.

        Raises:
            ValueError: if the resources cannot be loaded; the run ends.
        """

    def split(self, unit: UnitT) -> Sequence[UnitT]:  # noqa: ARG002 - units of most kinds of work have no parts
        """Split a failing unit into smaller units with unique names; return no units by default.

        Then only the smaller unit that contains the cause fails.

        Args:
            unit: unit that failed twice, or whose error a retry cannot fix.
        """
        return ()


@attrs.frozen(kw_only=True)
class FunctionWork(Work[UnitT, EntryT]):
    """Work by a plain function of a unit, without resources and without finishing in another thread.

    Args:
        function: module-level function, which other processes can import, or a `functools.partial` of one.
    """

    function: Callable[[UnitT], EntryT]

    def open(self, place: Place) -> Worker[UnitT, EntryT]:  # noqa: ARG002 - the same worker for every place
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
        reason: reason of the last failure.
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
        reason: reason in one line.
        is_transient: whether a retry may succeed; otherwise the unit fails immediately.
        is_machines: whether the machine is the cause (memory, for example). In this case, the last failed attempt ends
            the run.
    """

    reason: str
    is_transient: bool
    is_machines: bool = False


def reason_of(error: Exception) -> str:
    """Return an error's message in one line, with the class of an internal error."""
    text = " ".join(without_secrets(error).split())
    return text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def fatal_of(error: Exception) -> str:
    """Return a worker's fatal error in one line, and log an internal error with its traceback."""
    if (fault := machine_fault(error)) is not None:
        return f"{fault}; {_RUN_AGAIN}"
    if not isinstance(error, (ValueError, OSError, ImportError)):
        logger.warning("a worker failed", exc_info=error)
    return str(error) if isinstance(error, ValueError) else f"a worker failed to start: {reason_of(error)}"


def failure_of(unit: NamedUnit, error: Exception) -> Failure:
    """Return a unit's failure with the decision about a retry, and log an internal error with its traceback.

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
    """Callbacks for finished and failed units, one at a time in any thread; an error in a callback ends the run."""

    def begun(self, unit: UnitT, worker: str) -> None:
        """Handle the start of a unit in a worker."""

    def advanced(self, count: int) -> None:
        """Handle progress by a number of steps since the last call."""

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Handle a finished unit and its entry."""

    def failed(self, unit: UnitT, reason: str, pause_seconds: float) -> None:
        """Handle a failed attempt, which is followed by a pause and a retry."""

    def lost(self, unit: UnitT, reason: str) -> None:
        """Handle the loss of a unit's machine; another worker gets the unit, without counting an attempt."""

    def divided(self, unit: UnitT, reason: str, parts: Sequence[UnitT]) -> None:
        """Handle a unit that failed again, which smaller units replace."""

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Handle a unit that failed all attempts, or whose error a retry cannot fix."""


class ResultCallback(Listener[UnitT, EntryT]):
    """Calls one function for every finished or failed unit, in order of completion.

    Args:
        take: callback with a unit, and its entry or the reason of its failure.
    """

    def __init__(self, take: Callable[[UnitT, EntryT | SetAside], None]) -> None:
        self._take = take

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Pass the unit and its entry to `take`."""
        self._take(unit, entry)

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Pass the unit and the reason of its failure to `take`."""
        self._take(unit, aside)


class TaskQueue(Generic[UnitT, EntryT]):
    """A thread-safe queue of the waiting units and the units in progress.

    Args:
        units: units in the order of start.
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
        """Stop handing out units."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait until a unit is available, and return True; return False once all units are over or the run ended."""
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
            worker: name of the worker.
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
        """Return whether a unit was lost with a worker, so its next attempt must run alone to find the cause."""
        return unit.name in self._suspects

    def advance(self, num_steps: int) -> None:
        """Report steps to the listener. An error in the listener ends the run, as the current unit did not cause it."""
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
        """Record a failed attempt.

        Raises:
            FatalError: if this was the last attempt and the machine is the cause.
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
            units: units of the worker.
            worker: name of the worker.
            how: how the worker was lost, for messages.
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
