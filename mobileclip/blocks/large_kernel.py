"""The large-kernel convolution of the downsampling layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mobileclip.blocks.checks import check_odd
from mobileclip.blocks.conv2d import as_conv2d
from mobileclip.blocks.conv_norm import ConvNorm
from mobileclip.blocks.norm_sum import NormBranch, merges, sum_of_norms
from mobileclip.blocks.squeeze_excite import SqueezeExcite
from mobileclip.reparam import Reparameterizable, fuse_conv_bn, pad_kernel
from mobileclip.reparam.algebra import conv_with


class LargeKernelConv(Reparameterizable):
    """A large and a small kernel in parallel, by groups: `y = act(se(large(x) + small(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; sides are divided by `stride`, rounded up.

    Args:
        dim: channels in, and the number of groups.
        out_dim: channels out, a multiple of `dim`.
        kernel_size: the large kernel, both sides odd.
        small_kernel_size: the small kernel, both sides odd.
        stride: step of both, both ways.
        squeeze_excite: whether channels are gated after the sum, by a bottleneck of 1/4.
        activation: whether a GELU follows.

    Raises:
        ValueError: if a kernel side is even, the small kernel is larger, or `out_dim` is no multiple of `dim`.

    Fusing: to one convolution with a bias, then the gate and the activation as they were.
    Source: Ding et al., "RepLKNet"; Vasu et al., "FastViT", section 3.2.3; MobileCLIP Table 9.
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        kernel_size: tuple[int, int] = (7, 7),
        small_kernel_size: tuple[int, int] = (3, 3),
        stride: int = 1,
        squeeze_excite: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        check_odd(kernel_size)
        check_odd(small_kernel_size)
        if small_kernel_size[0] > kernel_size[0] or small_kernel_size[1] > kernel_size[1]:
            raise ValueError(f"the small kernel {small_kernel_size} does not fit into the large one {kernel_size}")
        if out_dim % dim:
            raise ValueError(f"out_dim={out_dim} is not a multiple of dim={dim}, the number of groups")
        self.large = ConvNorm(dim, out_dim=out_dim, kernel_size=kernel_size, stride=stride, groups=dim)
        self.small = ConvNorm(dim, out_dim=out_dim, kernel_size=small_kernel_size, stride=stride, groups=dim)
        self.squeeze_excite = SqueezeExcite(out_dim, reduction=4) if squeeze_excite else nn.Identity()
        self.activation = nn.GELU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of both kernels over `x`."""
        y: Tensor = self.activation(self.squeeze_excite(self._sum(x)))
        return y

    def _sum(self, x: Tensor) -> Tensor:
        convs = [conv for conv in (self.large, self.small) if isinstance(conv, ConvNorm)]
        half = torch.is_autocast_enabled(x.device.type)  # merging would give a wider sum than the branches do
        if self.training and not half and len(convs) == 2 and merges([conv.norm for conv in convs], x):
            return sum_of_norms([NormBranch(conv.conv(x), conv.norm) for conv in convs])
        large: Tensor = self.large(x)
        small: Tensor = self.small(x)
        return large + small

    def fold(self) -> nn.Sequential:
        """Return the convolution, and the gate and activation where there are any."""
        large, large_bias = fuse_conv_bn(self.large.conv, self.large.norm)
        small, small_bias = fuse_conv_bn(self.small.conv, self.small.norm)
        kernel = large + pad_kernel(small, (large.shape[2], large.shape[3]))
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=as_conv2d(conv_with(self.large.conv, kernel, large_bias + small_bias))
        )
        if not isinstance(self.squeeze_excite, nn.Identity):
            layers["squeeze_excite"] = self.squeeze_excite
        if not isinstance(self.activation, nn.Identity):
            layers["activation"] = self.activation
        return nn.Sequential(layers).eval()
