"""What every command can be told: to show no progress, and to fail where something was left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.frozen(kw_only=True)
class Common:
    """What a command was told.

    Args:
        quiet: whether no progress is shown.
        strict: whether what is left out is a failure.
    """

    quiet: bool = False
    strict: bool = False


_in_use = Common()


def common_flags() -> Common:
    """Return what the command was told that runs in this process."""
    return _in_use


@contextmanager
def use_common(told: Common) -> Iterator[None]:
    """Hold this for all threads of this process."""
    global _in_use  # noqa: PLW0603 - whoever shows progress asks for it, and is called from everywhere
    before, _in_use = _in_use, told
    try:
        yield
    finally:
        _in_use = before
