"""The feed-forward network of convolutional stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.blocks.arguments import KernelSize, MakeActivation, odd_sides
from mobileclip.blocks.conv_norm import ConvNorm
from mobileclip.reparam import scale_output, with_children


class ConvFFN(nn.Module):
    """A depthwise convolution with a norm, then two 1x1 convolutions: `y = fc2(activation(fc1(norm(conv(x)))))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        hidden_dim: channels between the two 1x1 convolutions; four times `dim` by default.
        kernel_size: height and width of the depthwise kernel, both odd, or one number for both; (1, 11) for text.
        activation: what makes the activation.

    Raises:
        ValueError: if a side of the kernel is even.

    Folding: the batch norm goes into the depthwise convolution; the owner's layer scale into `fc2`.
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
        """Return the transformed `x`; the residual is the owner's."""
        y: Tensor = self.fc2(self.activation(self.fc1(self.conv(x))))
        return y

    @torch.no_grad()
    def scaled(self, scale: Tensor) -> ConvFFN:
        """Return the network equal to `scale * self(x)`, per channel; shares all weights but the last projection's."""
        return with_children(self, {"fc2": scale_output(self.fc2, scale)})
