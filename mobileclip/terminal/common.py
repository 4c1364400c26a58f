"""The flags that every command accepts, `--quiet` and `--strict`, and the marker of rare flags."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TypeVar

import attrs

T = TypeVar("T")
RARE = "rare"
Rare = Annotated[T, RARE]
"""Marks an argument or field as rare: `--help-all` shows the flag, but `--help` does not."""


@attrs.frozen(kw_only=True)
class Common:
    """The flags that every command accepts: `--quiet` and `--strict`.

    Args:
        quiet: whether to hide progress bars.
        strict: whether skipped inputs count as a failure.
    """

    quiet: bool = False
    strict: bool = False


_in_use = Common()


def common_flags() -> Common:
    """Return the common flags of the command that this process runs."""
    return _in_use


def split_common_flags(names: Collection[str], arguments: Sequence[str]) -> tuple[Common, list[str]]:
    """Return the values of the common flags, and the command line without these flags.

    Args:
        names: flags to parse, such as `--quiet`; the function also parses their negations, such as `--no-quiet`.
        arguments: the command line.
    """
    said = {f"--{prefix}{name[2:]}": (name[2:], not prefix) for name in names for prefix in ("", "no-")}
    told = dict(said[one] for one in arguments if one in said)
    return Common(**told), [one for one in arguments if one not in said]


@contextmanager
def use_common(told: Common) -> Iterator[None]:
    """Use common flags in all threads of this process until the context ends."""
    global _in_use  # noqa: PLW0603 - progress displays anywhere in the process read it
    before, _in_use = _in_use, told
    try:
        yield
    finally:
        _in_use = before
