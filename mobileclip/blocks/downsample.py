"""The downsampling layer between two stages."""

from __future__ import annotations

from torch import nn

from mobileclip.blocks.arguments import MakeActivation
from mobileclip.blocks.large_kernel import LargeKernelConv
from mobileclip.blocks.mobileone import MobileOneBlock


class Downsample(nn.Sequential):
    """Halve the resolution and change the width: a large-kernel convolution, then a 1x1 MobileOne block.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height / 2, width / 2)`, sides rounded up.

    Args:
        dim: channels in.
        out_dim: channels out, a multiple of `dim`.
        squeeze_excite: whether the large-kernel convolution gates its channels.
        activation: what makes the activation behind the large-kernel convolution; None for none.

    Source: MobileCLIP Table 9; Vasu et al., "FastViT", section 3.2.2.

    Examples:
        >>> Downsample(8, out_dim=16)(torch.rand(2, 8, 14, 10)).shape
        torch.Size([2, 16, 7, 5])
    """

    def __init__(
        self, dim: int, *, out_dim: int, squeeze_excite: bool = False, activation: MakeActivation | None = nn.GELU
    ) -> None:
        super().__init__(
            LargeKernelConv(dim, out_dim=out_dim, stride=2, squeeze_excite=squeeze_excite, activation=activation),
            MobileOneBlock(out_dim, kernel_size=1),
        )
