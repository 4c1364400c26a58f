"""Weights behind which no branch, norm or scale can hide."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from tests.golden.fill import fill

Module = TypeVar("Module", bound=nn.Module)


def filled(module: Module, *, seed: int = 0) -> Module:
    """Set every tensor by its name, norms' statistics and layer scales (0.1 to 0.3) included; evaluation mode."""
    state = {
        name: torch.from_numpy(fill(name, tuple(tensor.shape), seed)) for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
