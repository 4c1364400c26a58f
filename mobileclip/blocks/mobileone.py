"""The MobileOne block: parallel branches for training, one convolution for inference."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from mobileclip.blocks.arguments import KernelSize, MakeActivation, activation_or_none, odd_sides
from mobileclip.blocks.conv_norm import ConvNorm, kernel_and_bias
from mobileclip.blocks.squeeze_excite import SqueezeExcite
from mobileclip.reparam import (
    Reparameterizable,
    identity_kernel,
    norm_affine,
    pad_kernel,
    plain_conv,
    without_identities,
)


class MobileOneBlock(Reparameterizable):
    """Convolution branches, a 1x1 scale branch and a normalised skip, summed: `y = activation(se(sum of branches(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, out_dim, height', width')`; sides are divided by `stride`, rounded up.

    Args:
        dim: channels in.
        out_dim: channels out; `dim` by default.
        kernel_size: height and width of the kernel, both odd, or one number for both.
        stride: step of the kernel, both ways.
        groups: groups of every branch; `dim` makes the block depthwise.
        num_branches: number of convolution branches.
        scale_branch: whether there is a 1x1 branch; by default where the kernel is taller than one row, as in the
            release, which so has none for the (1, 11) kernels of text.
        skip: whether there is a batch-normalised skip; by default where input and output have one shape.
        squeeze_excite: whether channels are gated after the sum, by a bottleneck of 1/16.
        activation: what makes the activation that follows; None for none.

    Raises:
        ValueError: if no branch is left, a kernel side is even, or a skip would change the shape.

    Folding: to one convolution with a bias, then the gate and the activation as they were.
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
            kernel `(out_dim, dim / groups, height, width)`, bias `(out_dim,)`, in the dtype of the algebra.
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
        """Return the convolution, and the gate and activation where there are any."""
        like = next(self.parameters())
        conv = plain_conv(*self.kernel_and_bias(), like=like, stride=(self.stride, self.stride), groups=self.groups)
        return without_identities({"conv": conv, "squeeze_excite": self.squeeze_excite, "activation": self.activation})
