"""Checks of what blocks are built from."""

from __future__ import annotations


def check_odd(kernel_size: tuple[int, int]) -> None:
    """Raise unless both sides of the kernel are odd.

    Raises:
        ValueError: an even kernel has no centre, so it would shift its output against the residual or the other branch.
    """
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(f"this block's kernels need a centre, so their sides are odd; got {kernel_size}")
