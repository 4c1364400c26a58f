"""Argument types of blocks: kernel sizes, activations and norms."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

KernelSize = int | tuple[int, int]
"""Height and width of a kernel, or one number for both."""

MakeActivation = Callable[[], nn.Module]
"""A class of activations, or whatever makes one, such as `partial(nn.GELU, approximate="tanh")`."""

MakeNorm = Callable[[int], nn.Module]
"""A class of norms, or whatever makes one from a number of channels, such as `partial(nn.LayerNorm, eps=1e-6)`."""


def sides(kernel_size: KernelSize) -> tuple[int, int]:
    """Return the height and width of a kernel."""
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size


def odd_sides(kernel_size: KernelSize) -> tuple[int, int]:
    """Return the height and width of a kernel with a centre.

    Raises:
        ValueError: if a side is even: such a kernel would shift its output against the residual or the other branch.
    """
    height, width = sides(kernel_size)
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"this block's kernels need a centre, so their sides are odd; got {(height, width)}")
    return height, width


def activation_or_none(make: MakeActivation | None) -> nn.Module:
    """Return a new activation module; `nn.Identity` for None."""
    return nn.Identity() if make is None else make()
