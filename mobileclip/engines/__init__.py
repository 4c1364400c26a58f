"""Runs units of work in this process, in several, or on a Ray cluster, with retries and resuming.

What the work is, belongs to the caller. A new way to spread work enters here.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

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
