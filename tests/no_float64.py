"""A device without float64, pretended: what is not brought to the CPU is refused float64, as on Apple's GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _Refusing(TorchFunctionMode):
    """Marks what was brought to the CPU, and what is computed from it, and refuses float64 to all else."""

    def __torch_function__(self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        found = func(*args, **(kwargs or {}))
        if func is Tensor.cpu or (func is Tensor.to and any(str(value) == "cpu" for value in args[1:])):
            found = found.clone()
            found.is_brought = True
            return found
        brought = func is torch.from_numpy or any(getattr(value, "is_brought", False) for value in given)
        for value in tree_leaves(found):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                if not brought:
                    raise TypeError(f"{func}: the device has no float64")
                value.is_brought = True
            elif isinstance(value, Tensor) and brought:
                value.is_brought = True
        return found


@contextmanager
def no_float64() -> Iterator[None]:
    """Let every device be one without float64."""
    with patch("mobileclip.hardware.has_float64", lambda _device: False), _Refusing():
        yield
