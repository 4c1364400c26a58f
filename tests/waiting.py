"""What tests wait for happens in another thread or process, sooner or later on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(is_so: Callable[[], object], *, seconds: float = 120.0) -> None:
    """Wait until something is so.

    Args:
        is_so: asked every hundredth of a second.
        seconds: after which it is an error that it is not.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(0.01)
