"""Standard streams that a person or a service has closed, before the command began or while it prints."""

from __future__ import annotations

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_standard_streams() -> None:
    """Open what is closed on the null device, so that the next file does not get its number and what is printed."""
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(handle, mode, encoding="utf-8", errors="backslashreplace"))


def give_up_output() -> None:
    """Print nothing more, as whoever read it has gone, and leave nothing that the end of the process would print."""
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123 - no path
        os.dup2(nothing.fileno(), sys.stdout.fileno())
