"""A run in an output: those that failed the last time come last, and what it did stands in the output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from mobileclip.engines.base import Engine
from mobileclip.engines.journal import Journal, Journaling
from mobileclip.engines.lease import Hold
from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside, read_set_aside, write_set_aside
from mobileclip.engines.work import EntryT, UnitT, Work


class Run:
    """Has an engine do units, with status, log and the list of what was set aside in the output; a context manager.

    A run may do several kinds of work, one after another; their list is one.

    Args:
        engine: who does them.
        output: folder or address, which exists.
        hold: that this run has of the output, see `held`.

    Raises:
        ValueError: if the list of the last run is damaged.
    """

    def __init__(self, engine: Engine, output: str, hold: Hold) -> None:
        self._engine = engine
        self._output = output
        self._hold = hold
        self._earlier = {aside.unit for aside in read_set_aside(output)}
        self._set_aside: list[SetAside] = []
        self._journal = Journal(output, hold)
        self._open = ExitStack()

    def __enter__(self) -> Run:  # noqa: PYI034 - `Self` needs Python 3.11
        self._open.enter_context(self._journal.kept())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @property
    def set_aside(self) -> tuple[SetAside, ...]:
        """What was set aside so far."""
        return tuple(self._set_aside)

    def begin(
        self,
        doing: str,
        *,
        num_units: int = 0,
        num_done_before: int = 0,
        then: Sequence[str] = (),
        called: str = "shards",
    ) -> None:
        """Say in the status what is done now.

        Args:
            doing: a kind of work, in a word such as `indexing`.
            num_units: of it; 0 where it has none.
            num_done_before: of them, that earlier runs have finished.
            then: the kinds of work that come after it.
            called: what the units are called.
        """
        self._journal.begin(doing, num_units=num_units, num_done_before=num_done_before, then=then, called=called)

    def do(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Have units done.

        Args:
            work: what is done with them.
            units: those that are not finished; they may be all of the work that has begun, or some.
            listener: who is told.

        Raises:
            ValueError: if the run cannot go on.
        """
        if units:
            journaling = Journaling(self._journal, listener, self._hold)
            self._engine.run(work, sorted(units, key=lambda unit: unit.name in self._earlier), journaling)
            self._set_aside += journaling.set_aside
        write_set_aside(self._output, self._set_aside)

    def refuse(self, name: str, reason: str) -> None:
        """Set a unit aside of which no try is worth while, such as one that is not there.

        Args:
            name: of the unit.
            reason: why.
        """
        self._set_aside.append(SetAside(unit=name, reason=reason, tries=1))
        self._journal.set_aside()

    def end(self, reason: str) -> None:
        """Say in the status that the run ends before its time, though nothing failed.

        Args:
            reason: why.
        """
        self._journal.end(reason)
