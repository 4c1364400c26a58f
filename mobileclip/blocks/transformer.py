"""The pre-norm transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.attention import Attention
from mobileclip.blocks.picking import pick


class FeedForward(nn.Module):
    """Two linear layers with a GELU between: `y = fc2(gelu(fc1(x)))`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        hidden_dim: width between the layers; four times `dim` by default.
    """

    def __init__(self, dim: int, *, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed `x`."""
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class TransformerLayer(nn.Module):
    """Attention, then feed-forward, each on normalised input with a residual.

    `x = x + attention(norm(x))`, `y = x + ffn(norm(x))`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        num_heads: number of attention heads; divides `dim`.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        causal: whether a token sees itself and earlier tokens only.
        norm_eps: added to the variance in the layer norms.

    Source: MobileCLIP section 3.1; Radford et al., "Learning Transferable Visual Models", section 2.4.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden_dim: int | None = None,
        causal: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads=num_heads, causal=causal)
        self.ffn_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn = FeedForward(dim, hidden_dim=hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y

    def at(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return one transformed token of each sequence, `pick(self(x), index)`; of the others, what it attends to.

        Shape:
            `(batch, tokens, dim)` and `(batch,)` to `(batch, dim)`.
        """
        picked = pick(x, index) + self.attention.at(self.attention_norm(x), index)
        y: Tensor = picked + self.ffn(self.ffn_norm(picked))
        return y
