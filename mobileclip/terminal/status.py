"""The exit status of commands that skip unusable input and count it."""

from __future__ import annotations

import sys

from mobileclip.terminal.common import common_flags


def conclude(*, left_out: object, strict: bool = False, done: object = True) -> None:
    """End with status 1 where nothing was done, or where something was left out and that is to count as a failure.

    One image of a thousand that cannot be read does not stop `mobileclip index photos/ && mobileclip search ...`: it
    was told, and the status is 0. `--strict` is for scripts that must not go on then.

    Args:
        left_out: whether something was; a count or a list does too.
        strict: whether that is a failure; where the command was told so, it is in any case.
        done: whether anything was done, the same way.

    Raises:
        SystemExit: with 1 in either case.
    """
    if not done or ((strict or common_flags().strict) and left_out):
        sys.exit(1)
