"""RepCPE: a conditional positional encoding whose skip folds into its kernel."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.checks import check_odd
from mobileclip.blocks.conv2d import Conv2d
from mobileclip.reparam import Reparameterizable, identity_kernel
from mobileclip.reparam.algebra import conv_with, widened


class RepCPE(Reparameterizable):
    """Add to every position what its neighbourhood says about where it is: `y = x + conv(x)`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        kernel_size: height and width of the depthwise kernel, both odd.

    Raises:
        ValueError: if a side of the kernel is even.

    Fusing: to one depthwise convolution.
    Source: Chu et al., "Conditional Positional Encodings for Vision Transformers"; MobileCLIP Table 9.
    """

    def __init__(self, dim: int, *, kernel_size: tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        check_odd(kernel_size)
        self.conv = Conv2d(dim, dim, kernel_size, padding=(kernel_size[0] // 2, kernel_size[1] // 2), groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus its positional encoding."""
        y: Tensor = x + self.conv(x)
        return y

    def fold(self) -> nn.Conv2d:
        """Return the one depthwise convolution that is equal."""
        kernel = widened(self.conv.weight)
        size = (kernel.shape[2], kernel.shape[3])
        identity = identity_kernel(self.conv.in_channels, size, groups=self.conv.groups, like=kernel)
        assert self.conv.bias is not None
        return conv_with(self.conv, kernel + identity, self.conv.bias.detach())
