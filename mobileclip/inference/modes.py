"""A context manager that keeps a module in evaluation mode and restores each submodule's mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Put a module into evaluation mode for the block, and every part of it back into its own mode behind it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
