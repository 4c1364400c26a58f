"""The feed-forward network of convolutional stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks.checks import check_odd
from mobileclip.blocks.conv_norm import ConvNorm
from mobileclip.reparam import LayerScale, scale_output, with_children


class ConvFFN(nn.Module):
    """A depthwise convolution with a norm, then two 1x1 convolutions: `y = fc2(gelu(fc1(norm(conv(x)))))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        hidden_dim: channels between the two 1x1 convolutions; four times `dim` by default.
        kernel_size: height and width of the depthwise kernel, both odd; (1, 11) for text.

    Raises:
        ValueError: if a side of the kernel is even.

    Fusing: the batch norm goes into the depthwise convolution; the owner's layer scale into `fc2`.
    Source: Vasu et al., "FastViT", section 3.2.3; MobileCLIP Table 9.
    """

    def __init__(self, dim: int, *, hidden_dim: int | None = None, kernel_size: tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        check_odd(kernel_size)
        hidden_dim = hidden_dim or 4 * dim
        self.conv = ConvNorm(dim, kernel_size=kernel_size, groups=dim)
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        nn.init.trunc_normal_(self.conv.conv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed `x`; the residual is the owner's."""
        y: Tensor = self.fc2(self._hidden(x))
        return y

    def times(self, scale: nn.Module, x: Tensor) -> Tensor:
        """Return `scale(self(x))`; in training a layer scale goes into the weights, smaller than the features.

        `gamma * (W h + b) = (gamma W) h + gamma b`: one pass over the features less in each direction, one map less to
        keep. Not where float16 computes, in which a small scale times a weight is nothing.
        """
        if not (self.training and isinstance(scale, LayerScale) and type(self.fc2) is nn.Conv2d) or _is_half(x):
            y: Tensor = scale(self(x))
            return y
        assert self.fc2.bias is not None
        weight, bias = self.fc2.weight * scale.gamma[..., None], self.fc2.bias * scale.gamma.flatten()
        return F.conv2d(self._hidden(x), weight, bias)

    def _hidden(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.activation(self.fc1(self.conv(x)))
        return hidden

    @torch.no_grad()
    def scaled(self, scale: Tensor) -> ConvFFN:
        """Return the network equal to `scale * self(x)`, per channel; shares all weights but the last projection's."""
        return with_children(self, {"fc2": scale_output(self.fc2, scale)})


def _is_half(x: Tensor) -> bool:
    device = x.device.type
    return (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype) == torch.float16
