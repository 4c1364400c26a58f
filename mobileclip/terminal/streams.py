"""Standard input, output and error where they are closed: by schedulers from the start, by readers later."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def ensure_streams() -> None:
    """Open what is closed of a program's three streams on nothing.

    Otherwise the next file that is opened, a checkpoint perhaps, gets the number of one of them, and what a library
    prints goes into it.
    """
    # Each gets the lowest number that is free.
    while (opened := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(opened, True)
    os.close(opened)
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - to the end


def output_stream(*, error: bool = False) -> TextIO:
    """Return standard output or error; what is written to a closed one goes nowhere."""
    stream = sys.stderr if error else sys.stdout
    return stream if stream is not None else io.StringIO()


def give_up_output() -> None:
    """Print nothing more, since its reader has gone, and leave nothing that the end of the process would print."""
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123 - no path
        os.dup2(nothing.fileno(), sys.stdout.fileno())
