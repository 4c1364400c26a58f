"""Ordered calls that run ahead of their consumer, and worker processes that end with their parent process.

Use this module for a stream of results that this process consumes, such as images for a model. For units of work whose
results are files or counts, use `mobileclip.engines`.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from mobileclip.storage import printable
from mobileclip.terminal.interruption import ending, leave_to_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


# Interval between checks for finished calls; while this process is stopped, at most one interval is counted.
_LOOK_SECONDS = 1.0


class LostProcessError(ValueError):
    """Raised if a worker process ends abruptly; the worker's current item may be the cause."""


class Mapper(Protocol):
    """Interface of a `map` over items, in this process or in worker processes."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /, *, doing: str) -> Iterator[Result]:
        """Yield the results in the order of the items; `doing` describes the work on one item, for error messages."""


@contextmanager
def workers(num_workers: int, *, seconds: float = 3600.0) -> Iterator[Mapper]:
    """Yield a `Mapper` over worker processes, or over this process if `num_workers` is 1.

    Args:
        num_workers: number of processes; 1 runs the calls in this process.
        seconds: maximum time without a finished item, in seconds.

    Raises:
        ValueError: if no process finishes an item within `seconds`.
        LostProcessError: if a worker process ends abruptly, for example because the system kills the process.
    """
    if num_workers == 1:
        yield lambda function, items, /, *, doing: map(function, items)  # noqa: ARG005 - as a `Mapper` is
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locked locks and open databases
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent) as pool:

        def share(function: Callable[[Item], Result], items: Iterable[Item], /, *, doing: str) -> Iterator[Result]:
            def submit(item: Item) -> Future[Result]:
                return pool.submit(function, item)

            for item, first, waiting in submitted_ahead(submit, items, ahead=2 * num_workers):
                if not _is_done_in_time(first, [future for _, future in waiting], seconds):
                    raise ValueError(
                        f"none of {num_workers} processes finished anything in {seconds:g} s while {doing} "
                        f"{printable(item)}: a process may be stopped or stuck. Find the cause, then run again"
                    )
                try:
                    result = first.result()
                except BrokenProcessPool:
                    raise LostProcessError(
                        f"a process ended abruptly while {doing} {printable(item)} or a later item, "
                        "often because it used too much memory. Run the command again with fewer processes"
                    ) from None
                yield result

        with ending(pool):
            yield share


def submitted_ahead(
    submit: Callable[[Item], Future[Result]],
    items: Iterable[Item],
    *,
    ahead: int,
    weigh: Callable[[Item], int] = lambda _: 1,
) -> Iterator[tuple[Item, Future[Result], Collection[tuple[Item, Future[Result]]]]]:
    """Yield items in order, each with its future and the queue of started calls, while later calls run ahead.

    Args:
        submit: function that starts a call in a thread or process and returns its future.
        items: items to process; iterated in the caller's thread.
        ahead: limit on the total weight of the started items; no item is started once the total reaches this limit, so
            the last started item may exceed the limit.
        weigh: function that returns the weight of an item, such as the size of its result; by default, every item
            weighs 1.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    remaining, weight = iter(items), 0
    while True:
        while weight < ahead and (drawn := list(islice(remaining, 1))):
            waiting.extend((item, submit(item)) for item in drawn)
            weight += sum(map(weigh, drawn))
        if not waiting:
            return
        item, first = waiting[0]
        yield item, first, waiting
        waiting.popleft()
        weight -= weigh(item)


def _is_done_in_time(first: Future[Any], futures: Collection[Future[Any]], seconds: float) -> bool:
    """Wait for the first call; return False if no call finishes for `seconds` seconds."""
    left, num_done = seconds, sum(future.done() for future in futures)
    while not first.done():
        if left <= 0:
            return False
        some = min(left, _LOOK_SECONDS)
        wait_for_futures([first], timeout=some)
        now = sum(future.done() for future in futures)
        left, num_done = (left - some if now == num_done else seconds), now
    return True


def end_with_parent() -> None:
    """End this process when its parent ends, so that the workers of a killed job do not wait forever."""
    leave_to_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None, "only started processes are initialized"

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
