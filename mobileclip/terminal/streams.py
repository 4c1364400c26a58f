"""Handles standard streams that are closed at the start, by a scheduler, or later, by a reader."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def ensure_streams() -> None:
    """Open closed standard streams on the null device.

    Otherwise the next opened file, such as a checkpoint, gets the stream's file descriptor, and libraries print into
    that file.
    """
    # `os.open` returns the lowest free descriptor.
    while (opened := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(opened, True)
    os.close(opened)
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the exit


def output_stream(*, error: bool = False) -> TextIO:
    """Return standard output or error; a closed stream discards writes."""
    stream = sys.stderr if error else sys.stdout
    return stream if stream is not None else io.StringIO()


def discard_output() -> None:
    """Stop printing after the reader exited, and discard buffered output."""
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123 - no path
        os.dup2(nothing.fileno(), sys.stdout.fileno())
