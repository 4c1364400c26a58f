"""What tests wait for happens in another thread or process, sooner or later on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Answer = TypeVar("Answer")


class Process(Protocol):
    """A program that was started, as `subprocess` and `tests.preloaded` have it."""

    def poll(self) -> int | None: ...

    def communicate(self) -> tuple[Any, Any]: ...


def wait_for(
    is_so: Callable[[], Answer], process: Process | None = None, *, seconds: float = 120.0, every: float = 0.01
) -> Answer:
    """Wait until something is so, and return what it then is.

    Args:
        is_so: asked again and again.
        process: that brings it about, whose end before is an error.
        seconds: after which it is an error that it is not so.
        every: so many seconds it is asked.
    """
    deadline = time.monotonic() + seconds
    while not (answer := is_so()):
        assert process is None or process.poll() is None, f"it ended before: {process.communicate()}"
        assert time.monotonic() < deadline, f"after {seconds:g} s it is still {answer!r}"
        time.sleep(every)
    return answer
