"""The first layers: from pixels to a feature map or to patch tokens."""

from __future__ import annotations

import torch.fx
from einops import rearrange
from torch import Tensor, nn

from mobileclip.blocks.conv_norm import ConvNorm
from mobileclip.blocks.mobileone import MobileOneBlock

torch.fx.wrap("rearrange")  # torch.fx would trace into it and fail


class ConvStem(nn.Sequential):
    """Three MobileOne blocks: 3x3 with stride 2, depthwise 3x3 with stride 2, 1x1.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, dim, height / 4, width / 4)`.

    Args:
        dim: channels out.
        in_dim: channels in; three of an image.
        scale_branch: whether the blocks have a 1x1 scale branch (MCi0-2; MCi3-4 have none).

    Source: MobileCLIP Table 9.

    Examples:
        >>> ConvStem(16)(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 16, 8, 12])
    """

    def __init__(self, dim: int, *, in_dim: int = 3, scale_branch: bool = True) -> None:
        super().__init__(
            MobileOneBlock(in_dim, out_dim=dim, stride=2, scale_branch=scale_branch),
            MobileOneBlock(dim, stride=2, groups=dim, scale_branch=scale_branch),
            MobileOneBlock(dim, kernel_size=1),
        )


class PatchStem(nn.Module):
    """Cut the image into patches and project each: one convolution whose kernel is its stride.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, tokens, dim)`, tokens row by row.

    Args:
        dim: width of the tokens.
        patch_size: side of a patch, in pixels.
        in_dim: channels in; three of an image.

    Examples:
        >>> PatchStem(16, patch_size=14)(torch.rand(1, 3, 28, 42)).shape
        torch.Size([1, 6, 16])
    """

    def __init__(self, dim: int, *, patch_size: int, in_dim: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, patch_size, stride=patch_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the patch tokens of the images `x`."""
        y: Tensor = rearrange(self.conv(x), "b c h w -> b (h w) c")
        return y


class ConvPatchStem(nn.Module):
    """Patches of 16 pixels through three convolutions: 4x4, 2x2, 2x2, each with its kernel as its stride.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, tokens, dim)`, tokens row by row.

    Args:
        dim: width of the tokens; the first two convolutions have a quarter of it.
        padding: zeros around the image in front of the first convolution.
        in_dim: channels in; three of an image.

    Folding: both batch norms go into the convolutions in front of them.
    Source: MobileCLIP section 3.1, the image tower of MobileCLIP-B.

    Examples:
        >>> ConvPatchStem(16)(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 6, 16])
    """

    def __init__(self, dim: int, *, padding: int = 1, in_dim: int = 3) -> None:
        super().__init__()
        hidden_dim = dim // 4
        self.conv1 = ConvNorm(in_dim, out_dim=hidden_dim, kernel_size=4, stride=4, padding=(padding, padding))
        self.conv2 = ConvNorm(hidden_dim, kernel_size=2, stride=2, padding=(0, 0))
        self.conv3 = nn.Conv2d(hidden_dim, dim, 2, stride=2)
        self.activation1 = nn.GELU()
        self.activation2 = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the patch tokens of the images `x`."""
        x = self.activation1(self.conv1(x))
        x = self.activation2(self.conv2(x))
        y: Tensor = rearrange(self.conv3(x), "b c h w -> b (h w) c")
        return y
