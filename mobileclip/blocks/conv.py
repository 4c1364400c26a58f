"""Convolution blocks: with norms, with foldable branches, for downsampling, and for stems."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.fx
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.reparam import (
    Reparameterizable,
    conv_with,
    fuse_conv_bn,
    identity_kernel,
    norm_affine,
    pad_kernel,
    plain_conv,
    widened,
    without_identities,
)

KernelSize = int | tuple[int, int]
"""Height and width of a kernel, or one number for both."""

MakeActivation = Callable[[], nn.Module]
"""An activation class, or a factory without arguments, such as `partial(nn.GELU, approximate="tanh")`."""

MakeNorm = Callable[[int], nn.Module]
"""A norm class, or a factory that accepts the number of channels, such as `partial(nn.LayerNorm, eps=1e-6)`."""


def sides(kernel_size: KernelSize) -> tuple[int, int]:
    """Return the height and width of a kernel."""
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size


def odd_sides(kernel_size: KernelSize) -> tuple[int, int]:
    """Return the height and width of a kernel with odd sides.

    Raises:
        ValueError: if a side is even, since an even kernel would shift the output relative to the residual or to the
            other branches.
    """
    height, width = sides(kernel_size)
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"the kernels of this block need a centre, so their sides must be odd; got {(height, width)}")
    return height, width


def activation_or_none(make: MakeActivation | None) -> nn.Module:
    """Return a new activation module; `nn.Identity` for None."""
    return nn.Identity() if make is None else make()


class ConvNorm(Reparameterizable):
    """A convolution without bias, then a batch norm: `y = norm(conv(x))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; with the default padding, the sides are
        divided by `stride`, rounded up.

    Args:
        dim: number of input channels.
        out_dim: number of output channels; `dim` by default.
        kernel_size: height and width of the kernel, or one number for both.
        stride: stride in both directions.
        padding: zero padding of rows and columns; half the kernel size by default.
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
        """Return the equivalent single convolution for evaluation mode."""
        return conv_with(self.conv, *fuse_conv_bn(self.conv, self.norm))


def kernel_and_bias(branch: nn.Module, *, stride: int, groups: int) -> tuple[Tensor, Tensor]:
    """Return the kernel and bias of a convolution branch, with its norm folded in.

    Shape:
        kernel `(out_dim, dim / groups, height, width)`, bias `(out_dim,)`, in the dtype of `widened`.

    Args:
        branch: a `ConvNorm`, or a folded `ConvNorm`.
        stride: stride of all branches.
        groups: number of groups of all branches.

    Raises:
        ValueError: if `branch` is neither a `ConvNorm` nor a convolution, or has another stride, number of groups,
            padding or dilation than the other branches.
    """
    conv = branch.conv if isinstance(branch, ConvNorm) else branch
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"each branch must be a ConvNorm or a Conv2d, not a {type(branch).__name__}")
    half = tuple(side // 2 for side in conv.kernel_size)
    found = (conv.stride, conv.groups, conv.padding, conv.dilation, conv.padding_mode)
    expected = ((stride, stride), groups, half, (1, 1), "zeros")
    if found != expected:
        names = ("stride", "groups", "padding", "dilation", "padding_mode")
        other = [f"{name}={own}" for name, own, same in zip(names, found, expected, strict=True) if own != same]
        raise ValueError(f"a branch has {', '.join(other)}, so its kernel cannot be added to the other kernels")
    if isinstance(branch, ConvNorm):
        return fuse_conv_bn(conv, branch.norm)
    return widened(conv.weight), widened(conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from channel means: `y = x * sigmoid(expand(relu(reduce(mean(x)))))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        reduction: factor by which the bottleneck reduces the channels; the bottleneck has at least one channel.

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
        # A mean over dimensions, since pooling over [height, width] would bake the sizes into exported graphs.
        gate = self.expand(F.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class MobileOneBlock(Reparameterizable):
    """Convolution branches, a 1x1 scale branch and a normalised skip, summed: `y = activation(se(sum of branches(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; sides are divided by `stride`, rounded up.

    Args:
        dim: number of input channels.
        out_dim: number of output channels; `dim` by default.
        kernel_size: height and width of the kernel, both odd, or one number for both.
        stride: stride in both directions.
        groups: groups of every branch; `dim` makes the block depthwise.
        num_branches: number of convolution branches.
        scale_branch: whether to add a 1x1 branch; by default if the kernel has more than one row, as in Apple's code
            (so not for the (1, 11) kernels of text towers).
        skip: whether to add a batch-normalised skip; by default if input and output have equal shapes.
        squeeze_excite: whether to gate channels after the sum, with a bottleneck of 1/16 of the channels.
        activation: class or factory of the activation; None for no activation.

    Raises:
        ValueError: if the block has no branch, a kernel side is even, or `skip` is set but input and output shapes
            differ.

    Folding: to one convolution with a bias, followed by the unchanged gate and activation.
    Source: Vasu et al., "MobileOne"; MobileCLIP section 3.1.

    Examples:
        >>> block, x = MobileOneBlock(8, groups=8, num_branches=4, activation=None).eval(), torch.rand(1, 8, 6, 6)
        >>> folded = mobileclip.reparameterize(block)
        >>> folded.conv
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8)
        >>> torch.allclose(folded(x), block(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        kernel_size: KernelSize = 3,
        stride: int = 1,
        groups: int = 1,
        num_branches: int = 1,
        scale_branch: bool | None = None,
        skip: bool | None = None,
        squeeze_excite: bool = False,
        activation: MakeActivation | None = nn.GELU,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        kernel_size = odd_sides(kernel_size)
        scale_branch = kernel_size[0] > 1 if scale_branch is None else scale_branch
        same_shape = out_dim == dim and stride == 1
        skip = same_shape if skip is None else skip
        if skip and not same_shape:
            raise ValueError(
                f"a skip needs equal input and output shapes, but dim={dim}, out_dim={out_dim}, stride={stride}"
            )
        if not (num_branches or scale_branch or skip):
            raise ValueError("the block has no branch; pass num_branches >= 1, scale_branch=True or skip=True")

        self.branches = nn.ModuleList(
            ConvNorm(dim, out_dim=out_dim, kernel_size=kernel_size, stride=stride, groups=groups)
            for _ in range(num_branches)
        )
        self.scale = ConvNorm(dim, out_dim=out_dim, stride=stride, groups=groups) if scale_branch else None
        self.skip = nn.BatchNorm2d(dim) if skip else None
        self.squeeze_excite = SqueezeExcite(out_dim, reduction=16) if squeeze_excite else nn.Identity()
        self.activation = activation_or_none(activation)
        self.dim = dim
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of the branches of `x`."""
        outputs = [branch(x) for branch in self.branches]
        outputs += [branch(x) for branch in (self.scale, self.skip) if branch is not None]
        y: Tensor = self.activation(self.squeeze_excite(reduce(torch.add, outputs)))
        return y

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return the kernel and bias of the convolution that equals the sum of the branches.

        Shape:
            kernel `(out_dim, dim / groups, height, width)`, bias `(out_dim,)`, in the dtype of `widened`.
        """
        branches = [*self.branches, *([] if self.scale is None else [self.scale])]
        read = [kernel_and_bias(branch, stride=self.stride, groups=self.groups) for branch in branches]
        parts = [(pad_kernel(kernel, self.kernel_size), bias) for kernel, bias in read]
        if self.skip is not None:
            scale, shift = norm_affine(self.skip)
            identity = identity_kernel(self.dim, self.kernel_size, groups=self.groups, like=scale)
            parts.append((identity * scale[:, None, None, None], shift))
        kernels, biases = zip(*parts, strict=True)
        return reduce(torch.add, kernels), reduce(torch.add, biases)

    def fold(self) -> nn.Sequential:
        """Return the convolution, followed by the gate and the activation if the block has them."""
        like = next(self.parameters())
        conv = plain_conv(*self.kernel_and_bias(), like=like, stride=(self.stride, self.stride), groups=self.groups)
        return without_identities({"conv": conv, "squeeze_excite": self.squeeze_excite, "activation": self.activation})


class LargeKernelConv(Reparameterizable):
    """Parallel grouped convolutions with a large and a small kernel: `y = activation(se(large(x) + small(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; sides are divided by `stride`, rounded up.

    Args:
        dim: number of input channels and of groups.
        out_dim: number of output channels, a multiple of `dim`.
        kernel_size: height and width of the large kernel, both odd, or one number for both.
        small_kernel_size: height and width of the small kernel, both odd, or one number for both.
        stride: stride of both convolutions, in both directions.
        squeeze_excite: whether to gate channels after the sum, with a bottleneck of 1/4 of the channels.
        activation: class or factory of the activation; None for no activation.

    Raises:
        ValueError: if a kernel side is even, the small kernel is larger than the large kernel, or `out_dim` is not a
            multiple of `dim`.

    Folding: to one convolution with a bias, followed by the unchanged gate and activation.
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
            raise ValueError(f"the small kernel {small} does not fit into the large kernel {large}")
        if out_dim % dim:
            raise ValueError(f"out_dim={out_dim} is not a multiple of dim={dim}, the number of groups")
        self.dim = dim
        self.stride = stride
        self.large = ConvNorm(dim, out_dim=out_dim, kernel_size=large, stride=stride, groups=dim)
        self.small = ConvNorm(dim, out_dim=out_dim, kernel_size=small, stride=stride, groups=dim)
        self.squeeze_excite = SqueezeExcite(out_dim, reduction=4) if squeeze_excite else nn.Identity()
        self.activation = activation_or_none(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of the large and the small convolution of `x`."""
        y: Tensor = self.activation(self.squeeze_excite(self.large(x) + self.small(x)))
        return y

    def fold(self) -> nn.Sequential:
        """Return the convolution, followed by the gate and the activation if the block has them."""
        read = [kernel_and_bias(conv, stride=self.stride, groups=self.dim) for conv in (self.large, self.small)]
        (large, large_bias), (small, small_bias) = read
        kernel = large + pad_kernel(small, (large.shape[2], large.shape[3]))
        like, stride = next(self.parameters()), (self.stride, self.stride)
        conv = plain_conv(kernel, large_bias + small_bias, like=like, stride=stride, groups=self.dim)
        return without_identities({"conv": conv, "squeeze_excite": self.squeeze_excite, "activation": self.activation})


class Downsample(nn.Sequential):
    """Halve the resolution and change the width: a large-kernel convolution, then a 1x1 MobileOne block.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height / 2, width / 2)`, sides rounded up.

    Args:
        dim: number of input channels.
        out_dim: number of output channels, a multiple of `dim`.
        squeeze_excite: whether to gate the channels after the large-kernel convolution.
        activation: class or factory of the activation after the large-kernel convolution; None for no activation.

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


torch.fx.wrap("rearrange")  # torch.fx would trace into `rearrange` and fail


class ConvStem(nn.Sequential):
    """Three MobileOne blocks: 3x3 with stride 2, depthwise 3x3 with stride 2, 1x1.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, dim, height / 4, width / 4)`.

    Args:
        dim: number of output channels.
        in_dim: number of input channels; three for RGB images.
        scale_branch: whether the two 3x3 blocks have a 1x1 scale branch, as in MCi0-2 but not in MCi3-4.

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
    """Cut the image into patches and project each patch: one convolution whose stride equals its kernel size.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, tokens, dim)`, tokens row by row.

    Args:
        dim: width of the tokens.
        patch_size: side of a patch, in pixels.
        in_dim: number of input channels; three for RGB images.

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
    """Embed patches of 16 pixels by three convolutions (4x4, 2x2, 2x2), each with a stride equal to its kernel size.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, tokens, dim)`, tokens row by row.

    Args:
        dim: width of the tokens; the first two convolutions have a quarter of this width.
        padding: zero padding of the image before the first convolution.
        in_dim: number of input channels; three for RGB images.

    Folding: the preceding convolutions absorb both batch norms.
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


class ChannelLayerNorm(nn.LayerNorm):
    """Normalise every position of a feature map over its channels.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        eps: number added to the variance for numerical stability.

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
