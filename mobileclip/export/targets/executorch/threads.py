"""The threads of ExecuTorch, of which a process has one pool."""

from __future__ import annotations

import threading
from importlib import import_module

from mobileclip.export.targets.native_stderr import kept_stderr
from mobileclip.export.targets.quiet import quiet
from mobileclip.hardware.threads import threads_or_default

_taking = threading.Lock()
_taken: list[int] = []


def take_threads(num_threads: int | None) -> None:
    """Let programs compute with so many threads.

    Programs that are open keep the pool that they were opened with, so the first one decides for all.

    Args:
        num_threads: at least 1; None for as many as PyTorch has, or as the first program took.

    Raises:
        ValueError: if the first program took another number.
    """
    count = threads_or_default(num_threads)
    with _taking:
        if not _taken:
            # It tells what it finds out about the processor.
            with quiet(), kept_stderr():
                bindings = import_module("executorch.extension.pybindings.portable_lib")
                if bindings._threadpool_get_thread_count() != count:  # noqa: SLF001  no public one sets it
                    bindings._unsafe_reset_threadpool(count)  # noqa: SLF001
            _taken.append(count)
        elif num_threads is not None and count != _taken[0]:
            raise ValueError(
                f"ExecuTorch computes with {_taken[0]} threads in this process since the first program was opened, and "
                f"num_threads is {count}; load it in another process, or ask for {_taken[0]}"
            )
