"""Processes that share work among them and end with the one that started them, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from typing import Protocol, TypeVar

from mobileclip.interruption import ending, leave_to_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """Calls a function on items, here or in other processes."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yield the results in the order of the items."""


@contextmanager
def workers(num_workers: int) -> Iterator[Mapper]:
    """Yield what shares calls among processes, or makes them here where one is enough.

    Args:
        num_workers: number of processes.
    """
    if num_workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locked locks and open databases
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:

        def share(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
            remaining = iter(items)
            futures = deque(pool.submit(function, item) for item in islice(remaining, 2 * num_workers))
            while futures:
                yield futures.popleft().result()
                futures.extend(pool.submit(function, item) for item in islice(remaining, 1))

        with ending(pool):
            yield share


def _end_with_parent() -> None:
    """Without this, the processes of a killed job would wait for work for ever."""
    leave_to_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None, "only started processes are initialized"

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
