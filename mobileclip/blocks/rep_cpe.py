"""RepCPE: a conditional positional encoding whose skip folds into its kernel."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.arguments import KernelSize, odd_sides
from mobileclip.reparam import Reparameterizable, conv_with, identity_kernel, widened


class RepCPE(Reparameterizable):
    """Conditional position encoding: add a depthwise convolution of the input, `y = x + conv(x)`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        kernel_size: height and width of the depthwise kernel, both odd, or one number for both.

    Raises:
        ValueError: if a side of the kernel is even.

    Folding: to one depthwise convolution.
    Source: Chu et al., "Conditional Positional Encodings for Vision Transformers"; MobileCLIP Table 9.

    Examples:
        >>> mobileclip.reparameterize(RepCPE(8).eval())
        Conv2d(8, 8, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3), groups=8)
    """

    def __init__(self, dim: int, *, kernel_size: KernelSize = 7) -> None:
        super().__init__()
        height, width = odd_sides(kernel_size)
        self.conv = nn.Conv2d(dim, dim, (height, width), padding=(height // 2, width // 2), groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus its positional encoding."""
        y: Tensor = x + self.conv(x)
        return y

    def fold(self) -> nn.Conv2d:
        """Return the one depthwise convolution that is equal."""
        kernel = widened(self.conv.weight)
        size = (kernel.shape[2], kernel.shape[3])
        identity = identity_kernel(self.conv.in_channels, size, groups=self.conv.groups, like=kernel)
        return conv_with(self.conv, kernel + identity, self.conv.bias)
