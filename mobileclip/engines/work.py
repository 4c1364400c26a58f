"""What is done with units, and what a worker is: the two halves of an engine's work that know what the work is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import attrs
from attrs import validators

from mobileclip.machine import MachineError, machine_fault
from mobileclip.storage import is_transient, without_secrets
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

RUN_AGAIN = "then run this again: what is finished is kept"

OnProgress = Callable[[int], None]
"""Called with the number of steps, samples for instance, that were done since the last call."""


class NamedUnit(Protocol):
    """A part of the work: a value that can be pickled, with a name of its own."""

    @property
    def name(self) -> str:
        """The name, unique in a run."""


UnitT = TypeVar("UnitT", bound=NamedUnit)
EntryT = TypeVar("EntryT")
UnitT_contra = TypeVar("UnitT_contra", bound=NamedUnit, contravariant=True)
EntryT_co = TypeVar("EntryT_co", covariant=True)


class FatalError(ValueError):
    """Something that no other try and no other unit would change, such as a full disk: it ends the run."""


@attrs.frozen(kw_only=True)
class Failure:
    """Why a try of a unit failed.

    Args:
        reason: in a line.
        is_transient: whether another try may succeed; where not, the unit is set aside at once.
        is_machines: whether the machine is to blame, such as its memory: the last try ends the run, and sets nothing
            aside.
    """

    reason: str
    is_transient: bool
    is_machines: bool = False


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
    """Makes units, with what it has loaded once."""

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
        """Return a worker, having loaded what it needs.

        Raises:
            ValueError: if that cannot be loaded; the run ends.
        """

    def split(self, unit: UnitT) -> Sequence[UnitT]:  # noqa: ARG002 - of most kinds of work, a unit has no parts
        """Return smaller units that a unit which keeps failing is tried as, with names of their own; none by default.

        Where a unit is several things, the one that fails is set aside alone then, and the others are done.

        Args:
            unit: that has failed twice, or of what no other try would change.
        """
        return ()


@attrs.frozen(kw_only=True)
class FunctionWork(Work[UnitT, EntryT]):
    """A function of a unit, which needs nothing loaded and nothing finished.

    Args:
        function: of a module, so that other processes find it; `functools.partial` of one does too.
    """

    function: Callable[[UnitT], EntryT]

    def open(self, place: Place) -> Worker[UnitT, EntryT]:  # noqa: ARG002 - it is the same everywhere
        """Return the function as a worker."""
        return self._make

    def _make(self, unit: UnitT, _on_progress: OnProgress, /) -> Callable[[], EntryT]:
        entry = self.function(unit)
        return lambda: entry


def reason_of(error: Exception) -> str:
    """Return why something failed, in a line: what the error says, and its kind where that is not for people."""
    text = " ".join(without_secrets(error).split())
    return text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def fatal_of(error: Exception) -> str:
    """Return why a worker cannot work at all, in a line; what is not for people is logged with its origin."""
    if (fault := machine_fault(error)) is not None:
        return f"{fault}; {RUN_AGAIN}"
    if not isinstance(error, (ValueError, OSError, ImportError)):
        logger.warning("a worker failed", exc_info=error)
    return f"a worker cannot work: {reason_of(error)}" if not isinstance(error, ValueError) else str(error)


def failure_of(unit: NamedUnit, error: Exception) -> Failure:
    """Return why a unit failed and whether it is tried again; what is not for people is logged with its origin.

    Raises:
        FatalError: if the error is one, or says that the machine's disk or shared memory takes no more.
    """
    if isinstance(error, FatalError):
        raise error
    fault = machine_fault(error)
    if fault is not None and not fault.may_pass:
        raise FatalError(f"{error if isinstance(error, MachineError) else fault}; {RUN_AGAIN}") from error
    if fault is not None:
        return Failure(reason=str(fault), is_transient=True, is_machines=True)
    if isinstance(error, (ValueError, OSError)):
        return Failure(reason=reason_of(error), is_transient=is_transient(error))
    logger.warning("%s failed", unit.name, exc_info=error)
    return Failure(reason=reason_of(error), is_transient=True)
