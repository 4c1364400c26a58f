"""A convolution and the batch norm behind it."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.conv2d import Conv2d
from mobileclip.reparam import Reparameterizable, fuse_conv_bn
from mobileclip.reparam.algebra import conv_with


class ConvNorm(Reparameterizable):
    """A convolution without bias, then a batch norm: `y = norm(conv(x))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; with the default padding the sides are
        divided by `stride`, rounded up.

    Args:
        dim: channels in.
        out_dim: channels out; `dim` by default.
        kernel_size: height and width of the kernel.
        stride: step of the kernel, both ways.
        padding: zeros around the input, (rows, columns); half the kernel by default.
        groups: groups of the convolution; `dim` makes it depthwise.

    Fusing: to one convolution with a bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        kernel_size: tuple[int, int] = (1, 1),
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        padding = padding if padding is not None else (kernel_size[0] // 2, kernel_size[1] // 2)
        self.conv = Conv2d(dim, out_dim, kernel_size, stride=stride, padding=padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised convolution of `x`."""
        y: Tensor = self.norm(self.conv(x))
        return y

    def fold(self) -> nn.Conv2d:
        """Return the one convolution that is equal in evaluation mode."""
        return conv_with(self.conv, *fuse_conv_bn(self.conv, self.norm))
