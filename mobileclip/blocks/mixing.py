"""Token and channel mixing without attention: RepMixer, positional convolutions, conv-FFN and drop path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.blocks.conv import ConvNorm, KernelSize, MakeActivation, MobileOneBlock, odd_sides
from mobileclip.reparam import (
    LayerScale,
    Reparameterizable,
    conv_with,
    identity_kernel,
    plain_conv,
    scale_output,
    widened,
    with_children,
)


class DropPath(nn.Module):
    """In training, drop the whole branch for some samples: `y = x * keep / (1 - rate)`, with `keep` 0 or 1 per sample.

    Shape:
        `(batch, ...)` in and out.

    Args:
        rate: drop probability per sample, in [0, 1).

    Raises:
        ValueError: if the rate is outside [0, 1).

    Source: Huang et al., "Deep Networks with Stochastic Depth"; FastViT's recipe for ImageNet.

    Examples:
        >>> DropPath(0.5)(torch.ones(100, 3)).unique()  # a dropped sample and a kept sample
        tensor([0., 2.])
        >>> DropPath(0.5).eval()(torch.ones(100, 3)).unique()
        tensor([1.])
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the drop path rate must be at least 0 and below 1, not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, dropped or scaled per sample in training, unchanged in evaluation mode."""
        if not self.training or not self.rate:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"


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
        """Return `x` plus its position encoding."""
        y: Tensor = x + self.conv(x)
        return y

    def fold(self) -> nn.Conv2d:
        """Return the equivalent single depthwise convolution."""
        kernel = widened(self.conv.weight)
        size = (kernel.shape[2], kernel.shape[3])
        identity = identity_kernel(self.conv.in_channels, size, groups=self.conv.groups, like=kernel)
        return conv_with(self.conv, kernel + identity, self.conv.bias)


class RepMixer(Reparameterizable):
    """Mix neighbouring positions within every channel: `y = x + gamma * (mixer(x) - norm(x))`.

    `mixer` is a depthwise MobileOne block without activation, `norm` a batch norm, `gamma` a scale per channel.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        kernel_size: height and width of the kernel, both odd, or one number for both.
        layer_scale: initial value of the scale `gamma`.

    Folding: to one depthwise convolution with a bias.
    Source: Vasu et al., "FastViT", section 3.2.1; MobileCLIP section 3.1.

    Examples:
        >>> mixer, x = RepMixer(8).eval(), torch.rand(1, 8, 6, 6)
        >>> folded = mobileclip.reparameterize(mixer)
        >>> folded
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8)
        >>> torch.allclose(folded(x), mixer(x), atol=1e-5)
        True
    """

    def __init__(self, dim: int, *, kernel_size: KernelSize = 3, layer_scale: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.mixer = MobileOneBlock(dim, kernel_size=kernel_size, groups=dim, activation=None)
        self.norm = MobileOneBlock(
            dim, kernel_size=kernel_size, groups=dim, num_branches=0, scale_branch=False, activation=None
        )
        self.layer_scale = LayerScale(dim, initial=layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed feature map."""
        y: Tensor = x + self.layer_scale(self.mixer(x) - self.norm(x))
        return y

    def fold(self) -> nn.Conv2d:
        """Return the equivalent single depthwise convolution for evaluation mode."""
        for part in (self.mixer, self.norm):
            if not isinstance(part.squeeze_excite, nn.Identity) or not isinstance(part.activation, nn.Identity):
                raise ValueError("the mixer has a gate or an activation, so it cannot fold into a single convolution")
        mixer, mixer_bias = self.mixer.kernel_and_bias()
        norm, norm_bias = self.norm.kernel_and_bias()
        gamma = widened(self.layer_scale.gamma).flatten()
        identity = identity_kernel(self.dim, self.mixer.kernel_size, groups=self.dim, like=self.layer_scale.gamma)
        kernel = identity + gamma[:, None, None, None] * (mixer - norm)
        bias = gamma * (mixer_bias - norm_bias)
        return plain_conv(kernel, bias, like=self.layer_scale.gamma, groups=self.dim)


class TextRepMixer(nn.Module):
    """A RepMixer over a sequence, such as words or audio frames.

    Shape:
        `(batch, length, dim)` in and out, as in `torch.nn.Transformer` with `batch_first`.

    Args:
        dim: width of the tokens.
        kernel_size: number of tokens to mix, an odd number.
        layer_scale: initial value of the layer scale.

    Folding: to one depthwise convolution with a bias.
    Source: MobileCLIP section 3.1 and Figure 3.

    Examples:
        >>> mixer = TextRepMixer(8, kernel_size=5).eval()
        >>> mixer(torch.rand(2, 20, 8)).shape
        torch.Size([2, 20, 8])
        >>> mobileclip.reparameterize(mixer).mixer
        Conv2d(8, 8, kernel_size=(1, 5), stride=(1, 1), padding=(0, 2), groups=8)
    """

    def __init__(self, dim: int, *, kernel_size: int = 11, layer_scale: float = 1e-5) -> None:
        super().__init__()
        self.mixer = RepMixer(dim, kernel_size=(1, kernel_size), layer_scale=layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed sequence."""
        return as_sequence(self.mixer(as_map(x)))


def as_map(x: Tensor) -> Tensor:
    """Return a sequence as a feature map with one row.

    Shape:
        `(batch, length, dim)` to `(batch, dim, 1, length)`.
    """
    # Do not reshape: for a single sequence, a reshape may give a dimension of size 1 a stride for which PyTorch 2.13's
    # batch norm in evaluation mode computes wrong gradients on the CPU.
    return x.transpose(1, 2).unsqueeze(2)


def as_sequence(x: Tensor) -> Tensor:
    """Return a feature map with one row as a sequence.

    Shape:
        `(batch, dim, 1, length)` to `(batch, length, dim)`.
    """
    return x.flatten(2).transpose(1, 2)


class ConvFFN(nn.Module):
    """A depthwise convolution with a norm, then two 1x1 convolutions: `y = fc2(activation(fc1(norm(conv(x)))))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        hidden_dim: channels between the two 1x1 convolutions; four times `dim` by default.
        kernel_size: height and width of the depthwise kernel, both odd, or one number for both; (1, 11) for text.
        activation: class or factory of the activation.

    Raises:
        ValueError: if a side of the kernel is even.

    Folding: the depthwise convolution absorbs the batch norm, and `fc2` absorbs the enclosing block's layer scale.
    Source: Vasu et al., "FastViT", section 3.2.3; MobileCLIP Table 9.

    Examples:
        >>> ConvFFN(8, kernel_size=(1, 11))(torch.rand(2, 8, 1, 77)).shape
        torch.Size([2, 8, 1, 77])
        >>> mobileclip.reparameterize(ConvFFN(8).eval()).conv
        Conv2d(8, 8, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3), groups=8)
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        kernel_size: KernelSize = 7,
        activation: MakeActivation = nn.GELU,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        self.conv = ConvNorm(dim, kernel_size=odd_sides(kernel_size), groups=dim)
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.activation = activation()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        nn.init.trunc_normal_(self.conv.conv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed `x`; the enclosing block adds the residual."""
        y: Tensor = self.fc2(self.activation(self.fc1(self.conv(x))))
        return y

    @torch.no_grad()
    def scaled(self, scale: Tensor) -> ConvFFN:
        """Return a network that computes `scale * self(x)`, per channel; only the weights of `fc2` are not shared."""
        return with_children(self, {"fc2": scale_output(self.fc2, scale)})
