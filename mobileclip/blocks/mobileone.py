"""The MobileOne block: parallel branches for training, one convolution for inference."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mobileclip.blocks.checks import check_odd
from mobileclip.blocks.conv2d import Conv2d, as_conv2d, conv_and_picked
from mobileclip.blocks.conv_norm import ConvNorm
from mobileclip.blocks.norm_sum import NormBranch, merges, sum_of_norms
from mobileclip.blocks.squeeze_excite import SqueezeExcite
from mobileclip.reparam import Reparameterizable, fuse_conv_bn, identity_kernel, norm_affine, pad_kernel
from mobileclip.reparam.algebra import plain_conv


class MobileOneBlock(Reparameterizable):
    """Convolution branches, a 1x1 scale branch and a normalised skip, summed: `y = act(se(sum of branches))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; sides are divided by `stride`, rounded up.

    Args:
        dim: channels in.
        out_dim: channels out; `dim` by default.
        kernel_size: height and width of the kernel, both odd.
        stride: step of the kernel, both ways.
        groups: groups of every branch; `dim` makes the block depthwise.
        num_branches: number of convolution branches.
        scale_branch: whether there is a 1x1 branch; by default where the kernel is taller than one row, as in the
            release, which so has none for the (1, 11) kernels of text.
        skip: whether there is a batch-normalised skip; by default where input and output have one shape.
        squeeze_excite: whether channels are gated after the sum, by a bottleneck of 1/16.
        activation: whether a GELU follows.

    Raises:
        ValueError: if no branch is left, a kernel side is even, or a skip would change the shape.

    Fusing: to one convolution with a bias, then the gate and the activation as they were.
    Source: Vasu et al., "MobileOne"; MobileCLIP section 3.1.
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        kernel_size: tuple[int, int] = (3, 3),
        stride: int = 1,
        groups: int = 1,
        num_branches: int = 1,
        scale_branch: bool | None = None,
        skip: bool | None = None,
        squeeze_excite: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        scale_branch = kernel_size[0] > 1 if scale_branch is None else scale_branch
        same_shape = out_dim == dim and stride == 1
        skip = same_shape if skip is None else skip
        check_odd(kernel_size)
        if skip and not same_shape:
            raise ValueError(f"a skip keeps the shape, but dim={dim}, out_dim={out_dim}, stride={stride}")
        if not (num_branches or scale_branch or skip):
            raise ValueError("the block has no branch; give it num_branches >= 1, scale_branch=True or skip=True")

        self.branches = nn.ModuleList(
            ConvNorm(dim, out_dim=out_dim, kernel_size=kernel_size, stride=stride, groups=groups)
            for _ in range(num_branches)
        )
        self.scale = ConvNorm(dim, out_dim=out_dim, stride=stride, groups=groups) if scale_branch else None
        self.skip = nn.BatchNorm2d(dim) if skip else None
        self.squeeze_excite = SqueezeExcite(out_dim, reduction=16) if squeeze_excite else nn.Identity()
        self.activation = nn.GELU() if activation else nn.Identity()
        self.dim = dim
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of the branches of `x`."""
        half = torch.is_autocast_enabled(x.device.type)  # merging would give wider outputs than the branches do
        merged = not half and self.merges(x)
        total = sum_of_norms(self.norm_branches(x)) if merged else self._sum_of_outputs(x)
        y: Tensor = self.activation(self.squeeze_excite(total))
        return y

    def merges(self, x: Tensor) -> bool:
        """Return whether the branches of `x` can be added up as norms: in training, with a batch's statistics."""
        unfolded = len(self._conv_norms()) == len(self.branches) + (self.scale is not None)
        return self.training and unfolded and merges(self._norms(), x)

    def norm_branches(self, x: Tensor) -> list[NormBranch]:
        """Return the branches as norms, of the convolutions of `x` and of `x` itself."""
        convs = self._conv_norms()
        depthwise = self.scale is not None and self._is_factor(self.scale)
        if depthwise and self.stride > 1 and [type(conv.conv) for conv in convs] == [Conv2d, Conv2d]:
            y, picked = conv_and_picked(convs[0].conv, x)
            return [NormBranch(y, convs[0].norm), NormBranch(picked, convs[1].norm, scale=convs[1].conv.weight)]
        as_factor = convs.pop() if depthwise and self.stride == 1 else None
        branches = [NormBranch(branch.conv(x), branch.norm) for branch in convs]
        if as_factor is not None:
            branches.append(NormBranch(x, as_factor.norm, scale=as_factor.conv.weight))
        if isinstance(self.skip, nn.BatchNorm2d):
            branches.append(NormBranch(x, self.skip))
        return branches

    def _sum_of_outputs(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = [branch(x) for branch in self.branches]
        if self.scale is not None:
            outputs.append(self.scale(x))
        if self.skip is not None:
            outputs.append(self.skip(x))
        return sum(outputs[1:], start=outputs[0])

    def _is_factor(self, scale: nn.Module) -> bool:
        """Whether the 1x1 convolution is a factor per channel."""
        conv = scale.conv if isinstance(scale, ConvNorm) else None
        return type(conv) is Conv2d and self.groups == conv.in_channels == conv.out_channels

    def _norms(self) -> list[nn.Module]:
        norms: list[nn.Module] = [branch.norm for branch in self._conv_norms()]
        return [*norms, *([] if self.skip is None else [self.skip])]

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return the kernel and bias of the convolution that equals the sum of the branches.

        Shape:
            kernel `(out_dim, dim / groups, height, width)`, bias `(out_dim,)`, in the dtype of the algebra.
        """
        parts = [
            (pad_kernel(kernel, self.kernel_size), bias)
            for kernel, bias in (fuse_conv_bn(branch.conv, branch.norm) for branch in self._conv_norms())
        ]
        if self.skip is not None:
            scale, shift = norm_affine(self.skip)
            identity = identity_kernel(self.dim, self.kernel_size, groups=self.groups, like=scale)
            parts.append((identity * scale[:, None, None, None], shift))
        kernels, biases = zip(*parts, strict=True)
        return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)

    def fold(self) -> nn.Sequential:
        """Return the convolution, and the gate and activation where there are any."""
        like = next(self.parameters())
        conv = plain_conv(*self.kernel_and_bias(), like=like, stride=(self.stride, self.stride), groups=self.groups)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=as_conv2d(conv))
        if not isinstance(self.squeeze_excite, nn.Identity):
            layers["squeeze_excite"] = self.squeeze_excite
        if not isinstance(self.activation, nn.Identity):
            layers["activation"] = self.activation
        return nn.Sequential(layers).eval()

    def _conv_norms(self) -> list[ConvNorm]:
        modules = [*self.branches, *([self.scale] if self.scale is not None else [])]
        return [module for module in modules if isinstance(module, ConvNorm)]
