"""Calls that run ahead of their consumer, in order; and processes for them, which end with the one that started them.

For a stream whose results this process uses, such as pictures for a model. Work in units, whose results are files or
counts, is for `mobileclip.engines`.
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


# How often this process looks whether something is finished; the time in which it was stopped itself is not counted.
_LOOK_SECONDS = 1.0


class LostProcessError(ValueError):
    """A process has ended abruptly: what it was doing may have killed it."""


class Mapper(Protocol):
    """Interface of a `map` over items, in this process or in others."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /, *, doing: str) -> Iterator[Result]:
        """Yield the results in the order of the items; `doing` says what is done with one, for errors."""


@contextmanager
def workers(num_workers: int, *, seconds: float = 3600.0) -> Iterator[Mapper]:
    """Yield a `Mapper` over worker processes, or over this one where one is enough.

    Args:
        num_workers: number of processes.
        seconds: without a result of any process, after which the work ends: one may be stopped or stuck.

    Raises:
        ValueError: if they take longer.
        LostProcessError: if one is killed.
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
                        f"{printable(item)}: one may be stopped or stuck. See to what hangs, and run this again"
                    )
                try:
                    result = first.result()
                except BrokenProcessPool:
                    raise LostProcessError(
                        f"a process ended abruptly while {doing} {printable(item)}, or one beside it: killed, often "
                        "for too much memory. Run this again, with fewer processes"
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
    """Yield items, in order, with their calls, some of which run ahead, and all items and calls from this one on.

    Args:
        submit: starts a call, in a thread or a process.
        items: drawn from in the caller's thread.
        ahead: weight of the items that may wait for the caller; one item may, whatever it weighs.
        weigh: how much memory a result takes, in any unit; by default every item weighs 1.
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
    """Wait for one of several calls as long as at least one of them ends within so many seconds."""
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
    """Have this process end when its parent does, so that workers of a killed job do not wait for ever."""
    leave_to_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None, "only started processes are initialized"

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
