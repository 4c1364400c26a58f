"""One writer at a time in a folder of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

LOCK = ".lock"


@contextmanager
def exclusive(directory: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder while a job writes to it; the system lets go of it when the process ends, however that happens.

    The lock's file stays where it is: removing it would let a third in beside one that waits for it.

    Args:
        directory: created where it is missing.
        wait_seconds: how long another holder is waited for; by default not at all.

    Raises:
        ValueError: if another process holds it, or it is held here already.
        OSError: if nothing can be written there.
    """
    lock = filelock.FileLock(directory / LOCK, timeout=wait_seconds)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        waited = f" for {wait_seconds:g} s" if wait_seconds else ""
        raise ValueError(
            f"another job is working in {directory}{waited}; wait for it, or choose another output (processes that a "
            "killed launcher started may live on: end them)"
        ) from None
    except NotImplementedError as error:
        raise OSError(f"{directory} lies on a disk that knows no locks ({error}); choose another output") from error
    except OSError as error:
        raise OSError(
            error.errno, f"{directory} cannot be written to ({error.strerror or error}); choose another output"
        ) from error
    try:
        yield
    finally:
        lock.release()
