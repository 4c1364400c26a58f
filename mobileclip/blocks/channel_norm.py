"""Layer norm over the channels of a feature map."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """Normalise every position of a feature map over its channels.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        eps: added to the variance.

    Source: MobileCLIP2, MCi3 and MCi4.

    Examples:
        >>> y = ChannelLayerNorm(8)(torch.rand(1, 8, 4, 4))
        >>> torch.allclose(y.mean(dim=1), torch.zeros(1, 4, 4), atol=1e-5)  # at every position
        True
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised feature map."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
