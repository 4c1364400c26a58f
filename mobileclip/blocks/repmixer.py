"""RepMixer: the convolutional token mixer whose skip, norm and scale fold into its one kernel."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.arguments import KernelSize
from mobileclip.blocks.mobileone import MobileOneBlock
from mobileclip.reparam import LayerScale, Reparameterizable, identity_kernel, plain_conv, widened


class RepMixer(Reparameterizable):
    """Mix every channel with its neighbours: `y = x + gamma * (mixer(x) - norm(x))`.

    `mixer` is a depthwise MobileOne block without activation, `norm` a batch norm, `gamma` a scale per channel.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        kernel_size: height and width of the neighbourhood, both odd, or one number for both.
        layer_scale: initial value of `gamma`.

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
        """Return `x` mixed over its neighbourhoods."""
        y: Tensor = x + self.layer_scale(self.mixer(x) - self.norm(x))
        return y

    def fold(self) -> nn.Conv2d:
        """Return the one depthwise convolution that is equal in evaluation mode."""
        for part in (self.mixer, self.norm):
            if not isinstance(part.squeeze_excite, nn.Identity) or not isinstance(part.activation, nn.Identity):
                raise ValueError("a gate or an activation stands in the mixer, which no single convolution can hold")
        mixer, mixer_bias = self.mixer.kernel_and_bias()
        norm, norm_bias = self.norm.kernel_and_bias()
        gamma = widened(self.layer_scale.gamma).flatten()
        identity = identity_kernel(self.dim, self.mixer.kernel_size, groups=self.dim, like=self.layer_scale.gamma)
        kernel = identity + gamma[:, None, None, None] * (mixer - norm)
        bias = gamma * (mixer_bias - norm_bias)
        return plain_conv(kernel, bias, like=self.layer_scale.gamma, groups=self.dim)


class TextRepMixer(nn.Module):
    """A RepMixer over a sequence: of words, or of anything else that has neighbours, such as frames of audio.

    Shape:
        `(batch, length, dim)` in and out, as in `torch.nn.Transformer` with `batch_first`.

    Args:
        dim: width of the tokens.
        kernel_size: number of neighbouring tokens that each is mixed with, odd.
        layer_scale: initial value of `gamma`.

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
    """Return a sequence as a feature map of one row.

    Shape:
        `(batch, length, dim)` to `(batch, dim, 1, length)`.
    """
    # Not by a reshape: of one sequence, it may give a dimension of size 1 a stride with which PyTorch's batch norm in
    # evaluation mode has wrong gradients on a CPU (2.13).
    return x.transpose(1, 2).unsqueeze(2)


def as_sequence(x: Tensor) -> Tensor:
    """Return a feature map of one row as a sequence.

    Shape:
        `(batch, dim, 1, length)` to `(batch, length, dim)`.
    """
    return x.flatten(2).transpose(1, 2)
