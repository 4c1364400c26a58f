"""RepMixer: the convolutional token mixer whose skip, norm and scale fold into its one kernel."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.mobileone import MobileOneBlock
from mobileclip.blocks.norm_sum import sum_of_norms
from mobileclip.reparam import LayerScale, Reparameterizable
from mobileclip.reparam.algebra import identity_kernel, plain_conv, widened


class RepMixer(Reparameterizable):
    """Mix every channel with its neighbours: `y = x + gamma * (mixer(x) - norm(x))`.

    `mixer` is a depthwise MobileOne block without activation, `norm` a batch norm, `gamma` a scale per channel.

    Shape:
        `(batch, dim, height, width)` in and out. Text runs as `(batch, dim, 1, tokens)` with a (1, 11) kernel.

    Args:
        dim: number of channels.
        kernel_size: height and width of the neighbourhood, both odd.
        layer_scale: initial value of `gamma`.

    Fusing: to one depthwise convolution with a bias.
    Source: Vasu et al., "FastViT", section 3.2.1; MobileCLIP section 3.1 and Figure 3 (Text-RepMixer).
    """

    def __init__(self, dim: int, *, kernel_size: tuple[int, int] = (3, 3), layer_scale: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.mixer = MobileOneBlock(dim, kernel_size=kernel_size, groups=dim, activation=False)
        self.norm = MobileOneBlock(
            dim, kernel_size=kernel_size, groups=dim, num_branches=0, scale_branch=False, activation=False
        )
        self.layer_scale = LayerScale(dim, initial=layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` mixed over its neighbourhoods."""
        if self._merges(x):
            norms = [branch._replace(sign=-1) for branch in self.norm.norm_branches(x)]
            branches = [*self.mixer.norm_branches(x), *norms]
            return sum_of_norms(branches, residual=x, factor=self.layer_scale.gamma)
        y: Tensor = x + self.layer_scale(self.mixer(x) - self.norm(x))
        return y

    def _merges(self, x: Tensor) -> bool:
        unfolded = isinstance(self.mixer, MobileOneBlock) and isinstance(self.norm, MobileOneBlock)
        return self.training and unfolded and self.mixer.merges(x) and self.norm.merges(x)

    def fold(self) -> nn.Conv2d:
        """Return the one depthwise convolution that is equal in evaluation mode."""
        mixer, mixer_bias = self.mixer.kernel_and_bias()
        norm, norm_bias = self.norm.kernel_and_bias()
        gamma = widened(self.layer_scale.gamma).flatten()
        identity = identity_kernel(self.dim, self.mixer.kernel_size, groups=self.dim, like=self.layer_scale.gamma)
        kernel = identity + gamma[:, None, None, None] * (mixer - norm)
        bias = gamma * (mixer_bias - norm_bias)
        return plain_conv(kernel, bias, like=self.layer_scale.gamma, groups=self.dim)
