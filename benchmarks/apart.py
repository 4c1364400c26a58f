"""A call in a process of its own, whose memory and settings are gone with it, and which ends with the benchmark."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from mobileclip.terminal.interruption import ending, leave_to_parent

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function returns, called in a fresh process.

    Args:
        function: of a module, so that the process finds it.
        arguments: can be pickled.

    Raises:
        BrokenProcessPool: if the process was ended.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=leave_to_parent) as pool, ending(pool) as submit:
        result: Result = submit(function, *arguments).result()
        return result
