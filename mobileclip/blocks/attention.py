"""Multi-head self-attention over sequences and over feature maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.fx
from einops import rearrange
from torch import Tensor, nn

from mobileclip.blocks.attention_backends import Attending, attention_backends
from mobileclip.reparam import scale_output, shift_input, with_children

torch.fx.wrap("rearrange")  # torch.fx would trace into it and fail

if TYPE_CHECKING:
    from typing_extensions import Self


class Attention(Attending):
    """Multi-head self-attention: `y = project(softmax(q k^T / sqrt(head_dim)) v)`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; divides `dim`.
        qkv_bias: whether queries, keys and values have a bias.
        causal: whether a token sees itself and earlier tokens only.
        backend: name in `attention_backends` of the kernel that computes it.

    Raises:
        ValueError: if `num_heads` does not divide `dim`, or the backend is unknown.

    Examples:
        >>> attention, x = Attention(64, num_heads=8, causal=True), torch.rand(2, 10, 64)
        >>> torch.allclose(attention(x)[:, :3], attention(x[:, :3]), atol=1e-5)  # later tokens are not seen
        True
    """

    def __init__(
        self, dim: int, *, num_heads: int, qkv_bias: bool = True, causal: bool = False, backend: str = "sdpa"
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.causal = causal
        self.backend = attention_backends.resolve(backend)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended `x`."""
        qkv = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        attended = self.backend(qkv[0], qkv[1], qkv[2], causal=self.causal)
        y: Tensor = self.project(rearrange(attended, "b h n d -> b n (h d)"))
        return y

    @torch.no_grad()
    def scaled(self, scale: Tensor) -> Self:
        """Return the attention equal to `scale * self(x)`, per channel."""
        return with_children(self, {"project": scale_output(self.project, scale)})

    @torch.no_grad()
    def shifted(self, scale: Tensor, shift: Tensor) -> Self:
        """Return the attention equal to `self(scale * x + shift)`, per channel."""
        return with_children(self, {"qkv": shift_input(self.qkv, scale, shift)})


class Attention2d(Attention):
    """Self-attention over the positions of a feature map.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args and errors are those of `Attention`.

    Examples:
        >>> Attention2d(64, num_heads=2, qkv_bias=False)(torch.rand(1, 64, 4, 6)).shape
        torch.Size([1, 64, 4, 6])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended feature map."""
        height = x.shape[2]
        y = super().forward(rearrange(x, "b c h w -> b (h w) c"))
        return rearrange(y, "b (h w) c -> b c h w", h=height)

    scaled, shifted = Attention.scaled, Attention.shifted  # hold for this forward too


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Let every attention in `model` compute with the backend of that name.

    Raises:
        ValueError: if the backend is unknown.

    Examples:
        >>> layer = TransformerLayer(32, num_heads=4)
        >>> set_attention_backend(layer, "reference")
        >>> layer.attention.backend is attention_backends["reference"]
        True
    """
    chosen = attention_backends.resolve(backend)
    for module in model.modules():
        if isinstance(module, Attending):
            module.backend = chosen
