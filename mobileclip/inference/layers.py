"""The layers of a tower that have weights to multiply by, by name."""

from __future__ import annotations

from torch import nn


def weighted_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers of a tower by name, in the order in which they compute.

    Left out are those that only their owner may compute with: PyTorch's own attention does not call its layers, and
    open_clip's text tower asks for the class of its projection.
    """
    owned = (
        one if isinstance(one, nn.MultiheadAttention) else getattr(one, "text_projection", None)
        for one in encoder.modules()
    )
    uncalled = {part for one in owned if isinstance(one, nn.Module) for part in one.modules()}
    return [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in uncalled
    ]


def is_grouped(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution in several groups."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1
