"""The main loop of a worker, in any process: it runs the units that it is given, and reports on them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import torch

from mobileclip.engines.heartbeat import Heart
from mobileclip.engines.overlap import Overlap
from mobileclip.engines.work import FatalError, NamedUnit, Place, Work, failure_of, fatal_of
from mobileclip.hardware.devices import pick_device
from mobileclip.storage import StoreLimits, use_limits

# What the end of the driver raises here.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


@attrs.frozen(kw_only=True, eq=False)
class Assignment:
    """Work for a worker; its units come after it, and the next assignment after them.

    Args:
        work: what is done with the units.
        place: where.
        torch_threads: on a CPU, that an operation is shared among.
    """

    work: Work[Any, Any]
    place: Place
    torch_threads: int


Message = tuple[str, str, Any]
"""What a worker says: a kind, the name of a unit, and a value.

The kinds are `heartbeat`; `ready`, with where it is; `steps`, with how many; `made`; `finished`, with the entry;
`failed`, with the failure; and `fatal`, with why the run ends.
"""


def serve(
    receive: Callable[[], Any],
    send: Callable[[Message], None],
    where: str,
    heartbeat_seconds: float,
    stores: StoreLimits,
) -> None:
    """Do unit after unit until the driver is gone.

    Args:
        receive: returns the next assignment or unit.
        send: takes what is said, from whatever thread, one message at a time.
        where: the worker is, for people.
        heartbeat_seconds: between two heartbeats.
        stores: how long stores are waited for: as in the driver.
    """
    lock = threading.Lock()

    def say(kind: str, unit: str = "", value: Any = None) -> None:
        with lock:
            send((kind, unit, value))

    with suppress(*_GONE), use_limits(stores):
        Heart(partial(say, "heartbeat"), seconds=heartbeat_seconds, gone=(OSError,))
        try:
            assignment = receive()
            while True:
                assignment = _do(assignment, receive, say, where)
        except _GONE:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the run must hear of it
            say("fatal", value=fatal_of(error))


def _do(assignment: Assignment, receive: Callable[[], Any], say: Callable[..., None], where: str) -> Assignment:
    """Load what the work needs, do its units, and return the assignment that comes after them."""

    def failed(unit: NamedUnit, error: Exception) -> None:
        try:
            say("failed", unit.name, failure_of(unit, error))
        except FatalError as fatal:
            say("fatal", unit.name, str(fatal))

    device = str(pick_device(assignment.place.device))
    if device == "cpu":
        torch.set_num_threads(assignment.torch_threads)
    worker = assignment.work.open(attrs.evolve(assignment.place, device=device))
    say("ready", value=f"{device}, {where}")
    with Overlap(worker, lambda unit, entry: say("finished", unit.name, entry), failed) as overlap:
        while not isinstance(received := receive(), Assignment):
            overlap.make(received, lambda steps: say("steps", value=steps))
            say("made")
    return received
