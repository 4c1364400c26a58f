"""Serialises calls of a function that is not thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class OneAtATime(Generic[Input, Output]):
    """A function that any number of threads may call: one after another is let in.

    It can be pickled if the function can; the other one has a lock of its own.

    Args:
        run: what is not safe under threads, such as a request of OpenVINO, or an interpreter of LiteRT.
    """

    def __init__(self, run: Callable[[Input], Output]) -> None:
        self._run = run
        self._lock = threading.Lock()

    def __call__(self, given: Input) -> Output:
        """Return what the function gives."""
        with self._lock:
            return self._run(given)

    def __reduce__(self) -> tuple[type[OneAtATime[Input, Output]], tuple[Callable[[Input], Output]]]:
        """Return what it is made of again."""
        return type(self), (self._run,)
