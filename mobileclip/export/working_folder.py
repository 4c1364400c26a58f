"""The temporary folder that an export is written to before it is moved into place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mobileclip.storage import atomic_folder, exclusive
from mobileclip.storage.exclusive import LOCK
from mobileclip.storage.leftovers import PREFIX


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes an output's place when the block ends; an error leaves nothing of it.

    Args:
        out: what is going to be written, or replaced.

    Raises:
        ValueError: if another process is writing the same output, or it has no name of its own.
        OSError: if nothing can be written there.
    """
    # Of one length: a folder's own name may be as long as names can be.
    place = out.parent / f"{PREFIX}{hashlib.sha256(os.fsencode(out.name)).hexdigest()[:16]}.exporting"
    held = False
    try:
        with exclusive(place):
            held = True
            with atomic_folder(out, overwrite=True) as folder:
                yield folder
    finally:
        if held:
            # If another process has come in meanwhile, the folder is its own.
            with suppress(OSError):
                (place / LOCK).unlink()
                place.rmdir()
