"""A run of an engine in an output: those that failed the last time come last, and what it did stands in the output."""

from __future__ import annotations

from collections.abc import Sequence

from mobileclip.engines.base import Engine
from mobileclip.engines.journal import Journal
from mobileclip.engines.lease import Hold
from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside, read_set_aside, write_set_aside
from mobileclip.engines.work import EntryT, UnitT, Work


def run_units(
    engine: Engine,
    work: Work[UnitT, EntryT],
    units: Sequence[UnitT],
    listener: Listener[UnitT, EntryT],
    *,
    output: str,
    hold: Hold,
    num_done_before: int,
) -> tuple[SetAside, ...]:
    """Have an engine do units, with status, log and the list of what was set aside in the output.

    Args:
        engine: who does them.
        work: what is done with them.
        units: those that are not finished.
        listener: who is told.
        output: folder or address, which exists.
        hold: that this run has of the output, see `held`.
        num_done_before: units that earlier runs have finished.

    Returns:
        What was set aside.

    Raises:
        ValueError: if the run cannot go on.
    """
    earlier = {aside.unit for aside in read_set_aside(output)}
    journal = Journal(listener, output, hold, num_units=num_done_before + len(units), num_done_before=num_done_before)
    with journal.kept():
        if units:
            engine.run(work, sorted(units, key=lambda unit: unit.name in earlier), journal)
        write_set_aside(output, journal.set_aside)
    return tuple(journal.set_aside)
