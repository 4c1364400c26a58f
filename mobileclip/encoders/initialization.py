"""Weight initialisation of the image towers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mobileclip.blocks import Attention


def initialize_linear(module: nn.Module) -> None:
    """Draw a linear layer's weight from a truncated normal of deviation 0.02 and zero its bias; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_as_open_clip(attentions: Iterable[Attention], free: Iterable[Tensor], *, width: int) -> None:
    """Draw a vision transformer's weights as open_clip's own does, where PyTorch's layers do not start so already.

    Queries, keys and values are uniform with the deviation `(2 / (width + 3 width)) ** 0.5`, and with the output of the
    attention have no bias at first. Class token, positions and projection are normal with `width ** -0.5`. All other
    layers stay as PyTorch makes them: weights, and biases where they have any, uniform with `(3 fan_in) ** -0.5`, which
    is 0.0104 for the output of the feed-forward networks of ViT-B/16.

    Args:
        attentions: of the layers.
        free: class token, positions and projection.
        width: of the tokens.

    Source: open_clip's `VisionTransformer`, which leaves its layers to PyTorch's `MultiheadAttention`, `Linear` and
        `Conv2d`.
    """
    for attention in attentions:
        nn.init.xavier_uniform_(attention.qkv.weight)
        for bias in (attention.qkv.bias, attention.project.bias):
            nn.init.zeros_(bias)
    for tensor in free:
        nn.init.normal_(tensor, std=width**-0.5)
