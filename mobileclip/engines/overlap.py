"""Each unit is finished beside the making of the next: while one is read back and uploaded, the device works."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic

from mobileclip.engines.work import EntryT, OnProgress, UnitT, Worker


class Overlap(Generic[UnitT, EntryT]):
    """Makes units one after another and finishes each in a thread of its own, at most one; a context manager.

    What is under way at the end of the block is finished; what that raises is raised behind a signal, too.

    Args:
        worker: who makes them.
        on_finished: called with a unit and its entry, in the thread that finished it.
        on_failed: called with a unit and what it raised, in whatever thread; what this raises ends the work.
    """

    def __init__(
        self,
        worker: Worker[UnitT, EntryT],
        on_finished: Callable[[UnitT, EntryT], None],
        on_failed: Callable[[UnitT, Exception], None],
    ) -> None:
        self._worker = worker
        self._on_finished = on_finished
        self._on_failed = on_failed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="finishing")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Overlap[UnitT, EntryT]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(wait=True)
        if isinstance(error, KeyboardInterrupt):
            self.wait()

    def make(self, unit: UnitT, on_progress: OnProgress) -> None:
        """Make a unit, wait for the one before it, and let this one be finished.

        Raises:
            Exception: what `on_failed` or `on_finished` raised, of this unit or of the one before it.
        """
        try:
            finish = self._worker(unit, on_progress)
        except Exception as error:  # noqa: BLE001 - whatever a unit makes its work raise, it is told
            self._on_failed(unit, error)
            return
        try:
            self.wait()
        except BaseException:
            del finish  # nobody finishes it: what it holds, such as a file that is not whole, goes with it
            raise
        self._pending = self._pool.submit(self._finish, unit, finish)

    def wait(self) -> None:
        """Wait until nothing is being finished.

        Raises:
            Exception: what `on_failed` or `on_finished` raised of it.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, unit: UnitT, finish: Callable[[], EntryT]) -> None:
        try:
            entry = finish()
        except Exception as error:  # noqa: BLE001 - as above
            self._on_failed(unit, error)
        else:
            self._on_finished(unit, entry)
