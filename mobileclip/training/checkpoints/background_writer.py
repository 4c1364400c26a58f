"""Writes checkpoints in a background thread, one at a time; an error is raised at the next write."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from mobileclip.terminal import get_logger

if TYPE_CHECKING:
    from typing_extensions import Self

logger = get_logger(__name__)


class BackgroundWriter:
    """Writes in a thread of its own; leaving its context waits for the last write.

    Raises:
        Exception: what the last write raised, unless another error ends the context, behind which it is logged; a
            signal is none.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None or isinstance(error, KeyboardInterrupt):
                raise
            logger.warning("%s", failed)
        finally:
            self._pool.shutdown()

    @property
    def has_failed(self) -> bool:
        """Whether the last write has ended with an error that nobody has seen."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def begin(self, write: Callable[[], None]) -> None:
        """Begin a write, when the one before has ended.

        Args:
            write: what it works on must not change meanwhile.

        Raises:
            Exception: what the write before raised; this one is not begun then.
        """
        self.wait()
        self._last = self._pool.submit(write)

    def wait(self) -> None:
        """Return when the last write has ended.

        Raises:
            Exception: what it raised, once.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()
