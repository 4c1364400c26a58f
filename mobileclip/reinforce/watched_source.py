"""A source that is worked on in another thread, until it ends or the work is not wanted any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Generic, TypeVar

T = TypeVar("T")
ResultT = TypeVar("ResultT")


class _StoppedError(Exception):
    """Nobody waits for the work any more."""


class WatchedSource(Generic[T]):
    """An iterable for a thread that works on it; the starting thread sees its end, and can stop it.

    Args:
        source: read by the thread that works.
    """

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self._ended = Event()
        self._stopped = Event()

    def __iter__(self) -> Iterator[T]:
        try:
            for one in self._source:
                if self._stopped.is_set():
                    raise _StoppedError
                yield one
        finally:
            self._ended.set()

    def pass_to(self, work: Callable[[], ResultT]) -> Future[ResultT]:
        """Run work that reads this in another thread; return the future of its result once everything is read.

        Args:
            work: iterates over this once.

        Raises:
            Exception: what the work raised before the source was at its end.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="making")
        outcome = pool.submit(work)
        pool.shutdown(wait=False)
        outcome.add_done_callback(lambda _: self._ended.set())
        try:
            self._ended.wait()
        except BaseException:
            # An interrupted process waits for its threads: this one is to end at the next sample.
            self._stopped.set()
            wait([outcome])
            raise
        if outcome.done():
            outcome.result()
        return outcome
