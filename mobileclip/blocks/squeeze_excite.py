"""Squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate from the image's mean: `y = x * sigmoid(expand(relu(reduce(mean(x)))))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        reduction: how many times fewer channels the bottleneck has; at least one is left.

    Source: Hu et al., "Squeeze-and-Excitation Networks"; MobileCLIP Table 9.

    Examples:
        >>> x = torch.rand(1, 32, 4, 4)
        >>> gate = SqueezeExcite(32)(x) / x
        >>> torch.allclose(gate, gate[:, :, :1, :1].expand_as(gate))  # one number for each channel, between 0 and 1
        True
    """

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden_dim = max(1, dim // reduction)
        self.reduce = nn.Conv2d(dim, hidden_dim, 1)
        self.expand = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with gated channels."""
        # A mean over dimensions, not a pooling by [height, width]: that would bake sizes into exported graphs.
        gate = self.expand(F.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)
