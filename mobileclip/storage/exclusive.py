"""One writer at a time in a folder of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a folder while a job writes to it; the system lets go of it when the process ends, however that happens.

    Args:
        directory: created where it is missing.

    Raises:
        ValueError: if another process holds it.
    """
    import fcntl  # not on every system, and importing the library must not need it

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another job is working in {directory}; wait for it, or choose another output (processes that a "
                "killed launcher started may live on: end them)"
            ) from None
        try:
            yield
        finally:
            (directory / LOCK).unlink(missing_ok=True)
