"""Timeouts, retry delays and lowest rates of stores, for everything that this process reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from attrs import validators

from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class StoreLimits:
    """Timeouts, retry pauses and minimum data rates of remote stores.

    Args:
        answer_seconds: timeout for a web server's response header, connecting and redirects included.
        stall_seconds: a connection below `min_bytes_per_second` for so long counts as broken.
        min_bytes_per_second: lowest data rate of a connection.
        recovery_seconds: a file is given up after so long below `min_bytes_per_second`, pauses included.
        call_seconds: timeout of one call of another store's package: look up, list, read a block, remove.
        retry_delays_seconds: pauses before the second and further attempts; a store that asks for less traffic gets it.
        max_bytes: largest file that is read.
    """

    answer_seconds: float = attrs.field(default=60.0, validator=validators.gt(0))
    stall_seconds: float = attrs.field(default=30.0, validator=validators.gt(0))
    min_bytes_per_second: float = attrs.field(default=1000.0, validator=validators.gt(0))
    recovery_seconds: float = attrs.field(default=600.0, validator=validators.gt(0))
    call_seconds: float = attrs.field(default=600.0, validator=validators.gt(0))
    retry_delays_seconds: tuple[float, ...] = attrs.field(
        default=(0.5, 2.0, 8.0), validator=validators.deep_iterable(validators.ge(0))
    )
    max_bytes: int = attrs.field(default=2**40, validator=validators.gt(0))

    @property
    def num_attempts(self) -> int:
        """How often a store is asked before it counts as failed."""
        return len(self.retry_delays_seconds) + 1


_in_use = StoreLimits()


def store_limits() -> StoreLimits:
    """Return the limits in use."""
    return _in_use


@contextmanager
def use_limits(limits: StoreLimits) -> Iterator[None]:
    """Hold these limits for all threads of this process; what is open already keeps its own."""
    global _in_use  # noqa: PLW0603 - the functions that open files are called from everywhere
    before, _in_use = _in_use, limits
    try:
        yield
    finally:
        _in_use = before


class Patience:
    """Seconds that a sender may be waited for: they run out while nothing comes, and come back with what is sent.

    Args:
        seconds: there are at most so many.
        bytes_per_second: a sender as fast as this is waited for without end.
    """

    def __init__(self, seconds: float, bytes_per_second: float) -> None:
        self._most = self.left = seconds
        self._rate = bytes_per_second

    def spend(self, seconds: float, num_bytes: int) -> None:
        """Take note of so many bytes after so many seconds."""
        self.left = min(self._most, self.left - seconds + num_bytes / self._rate)
