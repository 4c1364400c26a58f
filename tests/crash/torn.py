"""A program that writes badly, in each of the ways that a trial looks for."""

import os
import sys
from pathlib import Path


def write(way: str) -> None:
    """Write a file.

    Args:
        way: `lock` leaves a lock that stops the next run; `part` leaves a temporary file that nobody sweeps; `half`
            takes half a file for a whole one.
    """
    lock, part, target = Path("lock"), Path(f"{os.getpid()}.part"), Path("file")
    if way == "lock":
        if lock.exists():
            sys.exit(1)
        lock.touch()
        target.write_text("whole")
        lock.unlink()
    elif way == "part":
        part.write_text("whole")
        part.rename(target)
    elif not target.exists():
        target.write_text("half")
        target.write_text("whole")
