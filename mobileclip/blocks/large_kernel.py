"""The large-kernel convolution of the downsampling layers."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.arguments import KernelSize, MakeActivation, activation_or_none, odd_sides
from mobileclip.blocks.conv_norm import ConvNorm, kernel_and_bias
from mobileclip.blocks.squeeze_excite import SqueezeExcite
from mobileclip.reparam import Reparameterizable, pad_kernel, plain_conv, without_identities


class LargeKernelConv(Reparameterizable):
    """A large and a small kernel in parallel, by groups: `y = activation(se(large(x) + small(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; sides are divided by `stride`, rounded up.

    Args:
        dim: channels in, and the number of groups.
        out_dim: channels out, a multiple of `dim`.
        kernel_size: the large kernel, both sides odd, or one number for both.
        small_kernel_size: the small kernel, likewise.
        stride: step of both, both ways.
        squeeze_excite: whether channels are gated after the sum, by a bottleneck of 1/4.
        activation: what makes the activation that follows; None for none.

    Raises:
        ValueError: if a kernel side is even, the small kernel is larger, or `out_dim` is no multiple of `dim`.

    Folding: to one convolution with a bias, then the gate and the activation as they were.
    Source: Ding et al., "RepLKNet"; Vasu et al., "FastViT", section 3.2.3; MobileCLIP Table 9.

    Examples:
        >>> block = LargeKernelConv(8, out_dim=16, stride=2).eval()
        >>> mobileclip.reparameterize(block)
        Sequential(
          (conv): Conv2d(8, 16, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), groups=8)
          (activation): GELU(approximate='none')
        )
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        kernel_size: KernelSize = 7,
        small_kernel_size: KernelSize = 3,
        stride: int = 1,
        squeeze_excite: bool = False,
        activation: MakeActivation | None = nn.GELU,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        large, small = odd_sides(kernel_size), odd_sides(small_kernel_size)
        if small[0] > large[0] or small[1] > large[1]:
            raise ValueError(f"the small kernel {small} does not fit into the large one {large}")
        if out_dim % dim:
            raise ValueError(f"out_dim={out_dim} is not a multiple of dim={dim}, the number of groups")
        self.dim = dim
        self.stride = stride
        self.large = ConvNorm(dim, out_dim=out_dim, kernel_size=large, stride=stride, groups=dim)
        self.small = ConvNorm(dim, out_dim=out_dim, kernel_size=small, stride=stride, groups=dim)
        self.squeeze_excite = SqueezeExcite(out_dim, reduction=4) if squeeze_excite else nn.Identity()
        self.activation = activation_or_none(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of both kernels over `x`."""
        y: Tensor = self.activation(self.squeeze_excite(self.large(x) + self.small(x)))
        return y

    def fold(self) -> nn.Sequential:
        """Return the convolution, and the gate and activation where there are any."""
        read = [kernel_and_bias(conv, stride=self.stride, groups=self.dim) for conv in (self.large, self.small)]
        (large, large_bias), (small, small_bias) = read
        kernel = large + pad_kernel(small, (large.shape[2], large.shape[3]))
        like, stride = next(self.parameters()), (self.stride, self.stride)
        conv = plain_conv(kernel, large_bias + small_bias, like=like, stride=stride, groups=self.dim)
        return without_identities({"conv": conv, "squeeze_excite": self.squeeze_excite, "activation": self.activation})
