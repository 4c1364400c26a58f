"""Captures what native runtimes write to standard error."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mobileclip.terminal.silence import SILENCING

_STANDARD_ERROR = 2


@contextmanager
def kept_stderr() -> Iterator[IO[bytes]]:
    """Yield a file of what is written to standard error meanwhile, by whatever part of the process."""
    with SILENCING, _memory() as file:
        sys.stderr.flush()
        before = os.dup(_STANDARD_ERROR)
        os.dup2(file.fileno(), _STANDARD_ERROR)
        try:
            yield file
        finally:
            os.dup2(before, _STANDARD_ERROR)
            os.close(before)


def text_of(file: IO[bytes]) -> str:
    """Return what was written to the file so far."""
    file.seek(0)
    return file.read().decode(errors="replace").strip()


def _memory() -> IO[bytes]:
    """Return a file in memory, where the system has such: ExecuTorch ends a process that writes to a full disk."""
    return os.fdopen(os.memfd_create("errors"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()
