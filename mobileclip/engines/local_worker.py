"""The process of a worker of the local engine: what it does, and what it says of that."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import attrs
import torch

from mobileclip.engines.overlap import Overlap
from mobileclip.engines.work import FatalError, NamedUnit, Place, Work, failure_of, fatal_of
from mobileclip.processes import num_cores
from mobileclip.storage import StoreLimits, use_limits
from mobileclip.terminal.interruption import leave_to_parent

# What the end of the other process raises in this one.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


@attrs.frozen(kw_only=True, eq=False)
class Assignment:
    """Work for a process; the units come after it, and the next assignment after them.

    Args:
        number: of the assignment, which stands in all that is said of it.
        work: what is done with the units.
        place: where.
        num_workers: processes that share the cores of the machine.
    """

    number: int
    work: Work[Any, Any]
    place: Place
    num_workers: int


def work_for(connection: Connection, *, beat_seconds: float, stores: StoreLimits) -> None:
    """Do unit after unit until the other end of the connection is closed, or its process is gone.

    What is said is the number of the assignment, a kind, the name of the unit, and a value. The kinds are `alive`,
    `ready`, `steps`, `made`, `finished`, `failed` and `fatal`.

    Args:
        connection: to the process that has the units.
        beat_seconds: between two signs of life.
        stores: how long stores are waited for.
    """
    leave_to_parent()
    say = _Speaker(connection)
    threading.Thread(target=_beat, args=(say, beat_seconds), daemon=True).start()
    with suppress(*_GONE), use_limits(stores):
        try:
            assignment = connection.recv()
            while True:
                say.number = assignment.number
                assignment = _do(assignment, connection, say)
        except _GONE:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the run must hear of it
            say("fatal", value=fatal_of(error))


class _Speaker:
    """Says something to the other process, from whatever thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.number = -1

    def __call__(self, kind: str, name: str = "", value: Any = None) -> None:
        with self._lock:
            self._connection.send((self.number, kind, name, value))

    def failed(self, unit: NamedUnit, error: Exception) -> None:
        """Say that a unit has failed, or that the run cannot go on."""
        try:
            self("failed", unit.name, failure_of(unit, error))
        except FatalError as fatal:
            self("fatal", unit.name, str(fatal))


def _do(assignment: Assignment, connection: Connection, say: _Speaker) -> Assignment:
    """Load what the work needs, do its units, and return the assignment that comes after them."""
    if assignment.place.device == "cpu":
        torch.set_num_threads(max(1, num_cores() // assignment.num_workers))
    worker = assignment.work.open(assignment.place)
    say("ready")
    with Overlap(worker, lambda unit, entry: say("finished", unit.name, entry), say.failed) as overlap:
        while not isinstance(received := connection.recv(), Assignment):
            overlap.make(received, lambda steps: say("steps", value=steps))
            say("made")
    return received


def _beat(say: _Speaker, seconds: float) -> None:
    with suppress(OSError):
        while True:
            say("alive")
            time.sleep(seconds)
