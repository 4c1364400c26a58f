"""A run in an output: those that failed the last time come last, and what it did stands in the output."""

from __future__ import annotations

from collections.abc import Sequence

from mobileclip.engines.base import Engine
from mobileclip.engines.journal import Journal
from mobileclip.engines.lease import Hold
from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside, read_set_aside, write_set_aside
from mobileclip.engines.work import EntryT, UnitT, Work


class Run:
    """Has an engine do units, with status, log and the list of what was set aside in the output.

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

    @property
    def set_aside(self) -> tuple[SetAside, ...]:
        """What was set aside so far."""
        return tuple(self._set_aside)

    def do(
        self,
        work: Work[UnitT, EntryT],
        units: Sequence[UnitT],
        listener: Listener[UnitT, EntryT],
        *,
        num_done_before: int,
        doing: str = "",
    ) -> None:
        """Have units done; where there are none, the status stays the last one's.

        Args:
            work: what is done with them.
            units: those that are not finished.
            listener: who is told.
            num_done_before: units that were finished before.
            doing: what is done with them, for the status, where a run does several kinds of work.

        Raises:
            ValueError: if the run cannot go on.
        """
        if units:
            journal = Journal(
                listener,
                self._output,
                self._hold,
                num_units=num_done_before + len(units),
                num_done_before=num_done_before,
                doing=doing,
            )
            with journal.kept():
                self._engine.run(work, sorted(units, key=lambda unit: unit.name in self._earlier), journal)
            self._set_aside += journal.set_aside
        write_set_aside(self._output, self._set_aside)

    def refuse(self, name: str, reason: str) -> None:
        """Set a unit aside of which no try is worth while, such as one that is not there.

        Args:
            name: of the unit.
            reason: why.
        """
        self._set_aside.append(SetAside(unit=name, reason=reason, tries=1))
