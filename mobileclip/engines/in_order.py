"""Puts finished entries back into the order of their units."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside
from mobileclip.engines.work import EntryT, UnitT


class InOrder(Listener[UnitT, EntryT]):
    """Passes entries on in the order of the units; a context manager.

    Those whose turn has not come wait on the disk, in the temporary directory: while one unit is tried again after a
    pause, very many others may be finished.

    Args:
        units: in their order.
        take: called with a unit and its entry, or with what it was set aside for.
    """

    def __init__(self, units: Sequence[UnitT], take: Callable[[UnitT, EntryT | SetAside], None]) -> None:
        self._numbers = {unit.name: number for number, unit in enumerate(units)}
        self._take = take
        self._next = 0
        self._waiting: dict[int, UnitT] = {}
        self._folder = tempfile.TemporaryDirectory(prefix=".mobileclip-entries.")

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Pass the entry on, and those that waited for it; or let it wait."""
        self._end(unit, entry)

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Pass on that there is none."""
        self._end(unit, aside)

    def __enter__(self) -> InOrder[UnitT, EntryT]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._folder.cleanup()

    def _end(self, unit: UnitT, result: EntryT | SetAside) -> None:
        number = self._numbers[unit.name]
        if number != self._next:
            self._waiting[number] = unit
            self._path(number).write_bytes(pickle.dumps(result))
            return
        self._take(unit, result)
        self._next += 1
        while self._next in self._waiting:
            path = self._path(self._next)
            result = pickle.loads(path.read_bytes())  # noqa: S301 - this process wrote it
            self._take(self._waiting.pop(self._next), result)
            path.unlink()
            self._next += 1

    def _path(self, number: int) -> Path:
        return Path(self._folder.name, str(number))
