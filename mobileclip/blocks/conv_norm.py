"""A convolution and the batch norm behind it."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.arguments import KernelSize, sides
from mobileclip.reparam import Reparameterizable, conv_with, fuse_conv_bn, widened


class ConvNorm(Reparameterizable):
    """A convolution without bias, then a batch norm: `y = norm(conv(x))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; with the default padding the sides are
        divided by `stride`, rounded up.

    Args:
        dim: channels in.
        out_dim: channels out; `dim` by default.
        kernel_size: height and width of the kernel, or one number for both.
        stride: step of the kernel, both ways.
        padding: zeros around the input, (rows, columns); half the kernel by default.
        groups: groups of the convolution; `dim` makes it depthwise.

    Folding: to one convolution with a bias.

    Examples:
        >>> block = ConvNorm(3, out_dim=8, kernel_size=3, stride=2).eval()
        >>> block(torch.rand(1, 3, 15, 15)).shape
        torch.Size([1, 8, 8, 8])
        >>> mobileclip.reparameterize(block)
        Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        kernel_size: KernelSize = 1,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        height, width = sides(kernel_size)
        padding = padding if padding is not None else (height // 2, width // 2)
        self.conv = nn.Conv2d(dim, out_dim, (height, width), stride=stride, padding=padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised convolution of `x`."""
        y: Tensor = self.norm(self.conv(x))
        return y

    def fold(self) -> nn.Conv2d:
        """Return the one convolution that is equal in evaluation mode."""
        return conv_with(self.conv, *fuse_conv_bn(self.conv, self.norm))


def kernel_and_bias(branch: nn.Module, *, stride: int, groups: int) -> tuple[Tensor, Tensor]:
    """Return the kernel and bias of a convolution and its norm, or of what they were folded to before.

    Shape:
        kernel `(out_dim, dim / groups, height, width)`, bias `(out_dim,)`, in the dtype of the algebra.

    Args:
        branch: one of several whose kernels are added up.
        stride: that all of them have.
        groups: likewise.

    Raises:
        ValueError: if it is no such convolution, or one with other taps than the others: its kernel cannot be added.
    """
    conv = branch.conv if isinstance(branch, ConvNorm) else branch
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"a branch is a {type(branch).__name__}, of which no kernel can be read")
    half = tuple(side // 2 for side in conv.kernel_size)
    found = (conv.stride, conv.groups, conv.padding, conv.dilation, conv.padding_mode)
    expected = ((stride, stride), groups, half, (1, 1), "zeros")
    if found != expected:
        names = ("stride", "groups", "padding", "dilation", "padding_mode")
        other = [f"{name}={own}" for name, own, same in zip(names, found, expected, strict=True) if own != same]
        raise ValueError(f"a branch has {', '.join(other)}, so its kernel cannot be added to those of the others")
    if isinstance(branch, ConvNorm):
        return fuse_conv_bn(conv, branch.norm)
    return widened(conv.weight), widened(conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias)
