"""Attention from one sequence to another, and the pooling that is made of it."""

from __future__ import annotations

import torch
import torch.fx
from einops import rearrange
from torch import Tensor, nn

from mobileclip.blocks.attention_backends import Attending, attention_backends
from mobileclip.blocks.transformer import FeedForward

torch.fx.wrap("rearrange")  # torch.fx would trace into it and fail


class CrossAttention(Attending):
    """Multi-head attention to a context: `y = project(softmax(q k^T / sqrt(head_dim)) v)`, k and v of the context.

    Shape:
        `(batch, tokens, dim)` and a context `(batch, places, context_dim)` to `(batch, tokens, dim)`.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; divides `dim`.
        context_dim: width of the context; `dim` by default.
        backend: name of the kernel, see `attention_backends`.

    Raises:
        ValueError: if `num_heads` does not divide `dim`.

    Source: Vaswani et al., "Attention Is All You Need", section 3.2.

    Examples:
        >>> CrossAttention(32, num_heads=4, context_dim=48)(torch.rand(2, 5, 32), torch.rand(2, 9, 48)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(self, dim: int, *, num_heads: int, context_dim: int | None = None, backend: str = "sdpa") -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.backend = attention_backends.resolve(backend)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(context_dim or dim, dim)
        self.value = nn.Linear(context_dim or dim, dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return what the tokens `x` gather from the context."""
        return self.attend(x, *self.keys_and_values(context))

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of a context, `(batch, heads, places, head_dim)` each."""
        return self._heads(self.key(context)), self._heads(self.value(context))

    def attend(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what the tokens `x` gather from the context that keys and values are of."""
        attended = self.backend(self._heads(self.query(x)), key, value, causal=False)
        y: Tensor = self.project(rearrange(attended, "b h n d -> b n (h d)"))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)


class CrossAttentionLayer(nn.Module):
    """Attention to a context, then feed-forward, each on normalised input with a residual.

    `x = x + attention(attention_norm(x), context_norm(context))`, `y = x + ffn(ffn_norm(x))`.

    Shape:
        `(batch, tokens, dim)` and a context `(batch, places, dim)` to `(batch, tokens, dim)`.

    Args:
        dim: width of the tokens and of the context.
        num_heads: number of heads; divides `dim`.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.

    Examples:
        >>> CrossAttentionLayer(32, num_heads=4)(torch.rand(2, 5, 32), torch.rand(2, 9, 32)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, num_heads=num_heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the transformed tokens."""
        x = x + self.attention(self.attention_norm(x), self.context_norm(context))
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of a context, which do not depend on the tokens."""
        return self.attention.keys_and_values(self.context_norm(context))

    def attend(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the transformed tokens, given keys and values of the context."""
        x = x + self.attention.attend(self.attention_norm(x), key, value)
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y


class AttentionPooler(nn.Module):
    """A fixed number of learned queries that gather from a sequence: `y = attention(query_norm(q), context_norm(x))`.

    Shape:
        `(batch, places, context_dim)` to `(batch, num_queries, dim)`.

    Args:
        dim: width of what is gathered.
        context_dim: width of the sequence.
        num_queries: number of queries.
        num_heads: number of heads; divides `dim`.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.

    Examples:
        >>> AttentionPooler(32, context_dim=48, num_queries=5, num_heads=4)(torch.rand(2, 9, 48)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(self, dim: int, *, context_dim: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_queries, dim))
        self.query_norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(context_dim)
        self.attention = CrossAttention(dim, num_heads=num_heads, context_dim=context_dim)
        nn.init.normal_(self.queries)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each query gathers from `x`."""
        query = self.query_norm(self.queries).expand(x.shape[0], -1, -1)
        y: Tensor = self.attention(query, self.context_norm(x))
        return y
