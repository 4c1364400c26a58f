"""How many CPU threads a model uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def threads_or_default(count: int | None) -> int:
    """Return how many threads a runtime is to take: those that were asked for, or as many as PyTorch has.

    Args:
        count: at least 1; None for PyTorch's own, `torch.get_num_threads()`.

    Raises:
        ValueError: if it is less than 1.
    """
    if count is None:
        return torch.get_num_threads()
    if count < 1:
        raise ValueError(f"num_threads is {count}, expected at least 1, or None for as many as PyTorch has")
    return count


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads in this thread, then with as many as before.

    Args:
        count: at least 1; None for as many as it has.
    """
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
