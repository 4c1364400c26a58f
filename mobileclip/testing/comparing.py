"""Helpers for the conformance tests: random weights, copies, and comparison of results."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def with_random_statistics(model: ModuleT) -> ModuleT:
    """Randomise scales, shifts and running statistics in place, so that no layer is almost an identity."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.2, 1.2)
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def copies(value: T) -> Iterator[tuple[str, T]]:
    """Yield a deep copy and a pickled copy, with descriptions."""
    yield "copied", _done("copied", copy.deepcopy, value)
    yield "pickled", _done("pickled", lambda one: pickle.loads(pickle.dumps(one)), value)  # noqa: S301 - our own


def _done(done: str, way: Callable[[T], T], value: T) -> T:
    try:
        return way(value)
    except Exception as error:
        raise AssertionError(f"{type(value).__name__} cannot be {done}: {first_line(error)}") from error


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors relative to the norm of `expected`, computed in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def first_line(error: Exception) -> str:
    """Return an error's class and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def exported(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Export a module with `torch.export`, and return the exported module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, inputs, strict=False).module()
        except Exception as error:
            raise AssertionError(
                f"torch.export cannot export {name} ({first_line(error)}); its forward must not depend on "
                "the values of tensors"
            ) from error
