"""Heartbeats: a working process reports every few seconds that it is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress


class Heart:
    """Calls a function at once, and then every few seconds in a thread of its own, until it is stopped.

    Args:
        beat: what is called.
        seconds: between two calls.
        gone: errors of the later calls by which the heart stops: nobody listens any more.
    """

    def __init__(self, beat: Callable[[], None], *, seconds: float, gone: tuple[type[Exception], ...] = ()) -> None:
        self._stopped = threading.Event()
        beat()
        self._thread = threading.Thread(target=self._go_on, args=(beat, seconds, gone), name="heart", daemon=True)
        self._thread.start()

    def stop(self, seconds: float | None = None) -> bool:
        """Stop, and return whether the last call is over.

        Args:
            seconds: for which that is waited for; None for as long as it takes.
        """
        self._stopped.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _go_on(self, beat: Callable[[], None], seconds: float, gone: tuple[type[Exception], ...]) -> None:
        with suppress(*gone):
            while not self._stopped.wait(seconds):
                beat()
