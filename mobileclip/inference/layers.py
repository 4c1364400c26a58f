"""The layers of a tower that have weights to multiply by, by name."""

from __future__ import annotations

from torch import nn


def weighted_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers of a tower by name, in the order in which they compute.

    Those inside PyTorch's own attention are left out: it computes with their weights and does not call them.
    """
    uncalled = {part for one in encoder.modules() if isinstance(one, nn.MultiheadAttention) for part in one.modules()}
    return [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in uncalled
    ]


def is_grouped(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution in several groups."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1
