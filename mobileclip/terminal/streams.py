"""Handles standard streams that a scheduler closed before the start, or a reader closed later."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def ensure_streams() -> None:
    """Open each closed standard stream on the null device.

    Otherwise the next file that the process opens, such as a checkpoint, gets the file descriptor of the closed stream,
    and libraries print into the file.
    """
    # `os.open` returns the lowest free descriptor.
    while (opened := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(opened, True)
    os.close(opened)
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the exit


def output_stream(*, error: bool = False) -> TextIO:
    """Return standard output or standard error; for a closed stream, a buffer that nobody reads."""
    stream = sys.stderr if error else sys.stdout
    return stream if stream is not None else io.StringIO()


def discard_output() -> None:
    """Discard buffered and all further standard output, after the reader of the output has exited."""
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123 - no path
        os.dup2(nothing.fileno(), sys.stdout.fileno())
