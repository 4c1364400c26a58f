"""The exit status of commands that skip unusable inputs."""

from __future__ import annotations

import sys

from mobileclip.terminal.common import common_flags


def conclude(*, left_out: object, strict: bool = False, done: object = True) -> None:
    """Exit with status 1 if nothing was done, or if inputs were skipped under `--strict`.

    A single unreadable image does not stop `mobileclip index photos/ && mobileclip search ...`: the command logs the
    image, and exits with status 0. Scripts that need every input use `--strict`.

    Args:
        left_out: skipped inputs, as a bool, count or list.
        strict: whether to exit with status 1 if `left_out` is not empty; the flag `--strict` has the same effect.
        done: finished inputs, as a bool, count or list.

    Raises:
        SystemExit: with status 1, if `done` is empty, or if `left_out` is not empty and `strict` or `--strict` is set.
    """
    if not done or ((strict or common_flags().strict) and left_out):
        sys.exit(1)
