"""How the image towers' weights start."""

from __future__ import annotations

from torch import nn


def initialize_linear(module: nn.Module) -> None:
    """Draw a linear layer's weight from a truncated normal of deviation 0.02 and zero its bias; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
