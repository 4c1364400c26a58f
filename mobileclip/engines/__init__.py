"""Engines: units of work to finished entries, in this process, in several, or on a Ray cluster.

What the work is, belongs to whoever has it done. A new way to spread work enters here.
"""

from mobileclip.engines.base import Engine, default_num_threads
from mobileclip.engines.in_order import InOrder
from mobileclip.engines.inline import InlineEngine
from mobileclip.engines.local import LocalEngine
from mobileclip.engines.queue import Listener, Retries
from mobileclip.engines.ray import RayEngine
from mobileclip.engines.run import Run, held
from mobileclip.engines.set_aside import SET_ASIDE, SetAside, read_set_aside, write_set_aside
from mobileclip.engines.status import RUN, Status, read_status
from mobileclip.engines.work import (
    FatalError,
    FunctionWork,
    NamedUnit,
    OnProgress,
    Place,
    Work,
    Worker,
    fatal_of as fatal_of,  # for the house
    reason_of,
)

__all__ = [
    "RUN",
    "SET_ASIDE",
    "Engine",
    "FatalError",
    "FunctionWork",
    "InOrder",
    "InlineEngine",
    "Listener",
    "LocalEngine",
    "NamedUnit",
    "OnProgress",
    "Place",
    "RayEngine",
    "Retries",
    "Run",
    "SetAside",
    "Status",
    "Work",
    "Worker",
    "default_num_threads",
    "held",
    "read_set_aside",
    "read_status",
    "reason_of",
    "write_set_aside",
]
