"""Locks an output folder for one run; another run is refused until the first one ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from mobileclip import storage
from mobileclip.training.checkpoints.checkpoint import CheckpointFolder
from mobileclip.training.distributed import World


@contextmanager
def claimed(
    output: storage.AnyPath,
    files: Mapping[str, str],
    world: World,
    *,
    refuse: Callable[[], object],
    checkpoints: str = "checkpoints",
    kept: str | None = None,
    made: str | None = None,
) -> Iterator[None]:
    """Lock a folder for this run; an error before the first checkpoint frees it for other settings.

    Args:
        output: the folder or URL.
        files: what says which run it is, by the names of the files; the last one counts.
        world: the processes of the run, all of which call this.
        refuse: raises a ValueError where the folder holds another run.
        checkpoints: where the run's checkpoints are, below the folder.
        kept: file for which the folder is kept too.
        made: folder that is removed when all is given back.
    """

    def take() -> bool:
        with _held(output):
            refuse()
            is_new = not storage.exists(storage.join(output, list(files)[-1]))
            if is_new:
                for name, text in files.items():
                    storage.write_text(storage.join(output, name), text)
        return is_new

    is_new = world.from_first(take)
    try:
        yield
    except BaseException:
        if is_new and world.is_first:
            with suppress(OSError, ValueError), _held(output):  # what ended the run says more
                begun = CheckpointFolder(storage.join(output, checkpoints)).newest() is not None
                if not begun and not (kept and storage.exists(storage.join(output, kept))):
                    for name in reversed(list(files)):
                        storage.remove(storage.join(output, name))
                    if made is not None:
                        shutil.rmtree(storage.local_path(storage.join(output, made)), ignore_errors=True)
        raise


def _held(output: storage.AnyPath) -> AbstractContextManager[None]:
    return nullcontext() if storage.is_remote(output) else storage.exclusive(storage.local_path(output))
