"""Self-attention over tokens and feature maps, cross-attention, and the transformer layer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
import torch.fx
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks.conv import MakeActivation, MakeNorm
from mobileclip.blocks.mixing import DropPath
from mobileclip.extras import install_command
from mobileclip.registry import Registry
from mobileclip.reparam import scale_output, shift_input, with_children

if TYPE_CHECKING:
    from typing_extensions import Self


class AttentionBackend(Protocol):
    """A function that computes attended values from queries, keys and values.

    Shape:
        query, key, value and result: `(batch, heads, tokens, head_dim)`.

    Examples:
        >>> attend: AttentionBackend = attention_backends["sdpa"]
        >>> query, key, value = torch.rand(3, 1, 2, 5, 4)
        >>> attended = attend(query, key, value, causal=True)
        >>> torch.allclose(attended[:, :, 0], value[:, :, 0])  # the first token attends only to itself
        True
    """

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        """Return `softmax(query key^T / sqrt(head_dim)) value`; with `causal`, each token ignores later tokens."""


class SelectableAttention(nn.Module):
    """Base class of attention modules, with a backend that `set_attention_backend` can change."""

    backend: AttentionBackend


attention_backends: Registry[AttentionBackend] = Registry("attention_backend")
"""Attention backends by name; third parties add theirs here or by an entry point in `mobileclip.attention_backend`."""


@attention_backends.register("sdpa")
def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend with PyTorch's `scaled_dot_product_attention`; the default."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


@attention_backends.register("reference")
def reference_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend by the explicit formula, in at least float32; slow, as a reference for other backends."""
    wide, device = torch.promote_types(query.dtype, torch.float32), query.device
    # Autocast would cast both products back to low precision.
    casts = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False) if casts else nullcontext():
        logits = query.to(wide) @ key.to(wide).transpose(-2, -1) * query.shape[-1] ** -0.5
        if causal:
            tokens = query.shape[-2]
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        attended: Tensor = logits.softmax(-1) @ value.to(wide)
    return attended.to(value.dtype)


@attention_backends.register("xformers")
def xformers_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend with the memory-efficient kernel of xformers, on CUDA devices only.

    Raises:
        ValueError: if the tensors are not on a CUDA device.
        ImportError: if xformers is not installed.
    """
    if query.device.type != "cuda":
        raise ValueError(
            f"the attention backend 'xformers' runs on CUDA devices only, but these tensors are on {query.device}; "
            "move the model to a GPU or use the backend 'sdpa'"
        )
    try:
        from xformers import ops
    except ImportError as error:
        raise ImportError(f"the attention backend 'xformers' needs xformers: {install_command('xformers')}") from error
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mask = ops.LowerTriangularMask() if causal else None
    attended: Tensor = ops.memory_efficient_attention(query, key, value, attn_bias=mask)
    return attended.transpose(1, 2)


torch.fx.wrap("rearrange")  # torch.fx would trace into `rearrange` and fail


class Attention(SelectableAttention):
    """Multi-head self-attention: `y = project(softmax(q k^T / sqrt(head_dim)) v)`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; divides `dim`.
        qkv_bias: whether queries, keys and values have a bias.
        causal: whether each token attends only to itself and earlier tokens.
        backend: name of the attention backend, see `attention_backends`.

    Raises:
        ValueError: if `num_heads` does not divide `dim`, or the backend is unknown.

    Examples:
        >>> attention, x = Attention(64, num_heads=8, causal=True), torch.rand(2, 10, 64)
        >>> torch.allclose(attention(x)[:, :3], attention(x[:, :3]), atol=1e-5)  # tokens do not attend to later ones
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
        """Return the attention output for the tokens `x`."""
        qkv = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        attended = self.backend(qkv[0], qkv[1], qkv[2], causal=self.causal)
        y: Tensor = self.project(rearrange(attended, "b h n d -> b n (h d)"))
        return y

    @torch.no_grad()
    def scaled(self, scale: Tensor) -> Self:
        """Return a module equal to `scale * self(x)`, with one scale per channel."""
        return with_children(self, {"project": scale_output(self.project, scale)})

    @torch.no_grad()
    def shifted(self, scale: Tensor, shift: Tensor) -> Self:
        """Return a module equal to `self(scale * x + shift)`, with one scale and shift per channel."""
        return with_children(self, {"qkv": shift_input(self.qkv, scale, shift)})


class Attention2d(Attention):
    """Self-attention over the positions of a feature map.

    Shape:
        `(batch, dim, height, width)` in and out.

    See `Attention` for the arguments and errors.

    Examples:
        >>> Attention2d(64, num_heads=2, qkv_bias=False)(torch.rand(1, 64, 4, 6)).shape
        torch.Size([1, 64, 4, 6])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output for the positions of the feature map `x`."""
        height = x.shape[2]
        y = super().forward(rearrange(x, "b c h w -> b (h w) c"))
        return rearrange(y, "b (h w) c -> b c h w", h=height)

    scaled, shifted = Attention.scaled, Attention.shifted  # hold for this forward too


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Set the backend of every attention module in `model`, by name.

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
        if isinstance(module, SelectableAttention):
            module.backend = chosen


class CrossAttention(SelectableAttention):
    """Multi-head attention, with k and v from a context: `y = project(softmax(q k^T / sqrt(head_dim)) v)`.

    Shape:
        `(batch, tokens, dim)` and a context `(batch, positions, context_dim)` to `(batch, tokens, dim)`.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; divides `dim`.
        context_dim: width of the context; `dim` by default.
        backend: name of the attention backend, see `attention_backends`.

    Raises:
        ValueError: if `num_heads` does not divide `dim`, or the backend is unknown.

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
        """Return the attention output for tokens `x` and the context."""
        return self.attend(x, *self.keys_and_values(context))

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a context, each `(batch, heads, positions, head_dim)`."""
        return self._heads(self.key(context)), self._heads(self.value(context))

    def attend(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention output for tokens `x` and the given keys and values."""
        attended = self.backend(self._heads(self.query(x)), key, value, causal=False)
        y: Tensor = self.project(rearrange(attended, "b h n d -> b n (h d)"))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)


class CrossAttentionLayer(nn.Module):
    """Attention to a context, then a feed-forward network, each on normalised input with a residual.

    `x = x + attention(attention_norm(x), context_norm(context))`, `y = x + ffn(ffn_norm(x))`.

    Shape:
        `(batch, tokens, dim)` and a context `(batch, positions, dim)` to `(batch, tokens, dim)`.

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
        """Return the keys and values of a context."""
        return self.attention.keys_and_values(self.context_norm(context))

    def attend(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the transformed tokens from precomputed keys and values of the context."""
        x = x + self.attention.attend(self.attention_norm(x), key, value)
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y


class AttentionPooler(nn.Module):
    """A fixed number of learned queries that attend to a sequence: `y = attention(query_norm(q), context_norm(x))`.

    Shape:
        `(batch, positions, context_dim)` to `(batch, num_queries, dim)`.

    Args:
        dim: width of the queries and the output.
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
        """Return the attention output of each query for the sequence `x`."""
        query = self.query_norm(self.queries).expand(x.shape[0], -1, -1)
        y: Tensor = self.attention(query, self.context_norm(x))
        return y


class FeedForward(nn.Module):
    """Two linear layers with an activation between them: `y = fc2(activation(fc1(x)))`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        hidden_dim: width between the two layers; four times `dim` by default.
        activation: class or factory of the activation.

    Examples:
        >>> network = FeedForward(8, activation=nn.SiLU)
        >>> network.fc1, network.activation
        (Linear(in_features=8, out_features=32, bias=True), SiLU())
    """

    def __init__(self, dim: int, *, hidden_dim: int | None = None, activation: MakeActivation = nn.GELU) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = activation()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed `x`."""
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class TransformerLayer(nn.Module):
    """Self-attention, then a feed-forward network, each on normalised input with a residual.

    `x = x + drop_path(attention(attention_norm(x)))`, `y = x + drop_path(ffn(ffn_norm(x)))`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        mixer: token mixer that maps tokens to tokens; an `Attention` by default.
        num_heads: number of heads of the default mixer; divides `dim`.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        causal: whether the default mixer is causal.
        norm: class or factory of the norms before attention and feed-forward network.
        activation: class or factory of the feed-forward network's activation.
        drop_path: probability of dropping each residual branch per sample in training.

    Source: MobileCLIP section 3.1; Radford et al., "Learning Transferable Visual Models", section 2.4.

    Examples:
        >>> TransformerLayer(32, num_heads=4)(torch.rand(2, 10, 32)).shape
        torch.Size([2, 10, 32])
        >>> TransformerLayer(32, mixer=TextRepMixer(32)).attention.mixer.dim
        32
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module | None = None,
        num_heads: int = 8,
        hidden_dim: int | None = None,
        causal: bool = False,
        norm: MakeNorm = nn.LayerNorm,
        activation: MakeActivation = nn.GELU,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim)
        self.attention = Attention(dim, num_heads=num_heads, causal=causal) if mixer is None else mixer
        self.ffn_norm = norm(dim)
        self.ffn = FeedForward(dim, hidden_dim=hidden_dim, activation=activation)
        self.attention_drop_path, self.ffn_drop_path = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        x = x + self.attention_drop_path(self.attention(self.attention_norm(x)))
        y: Tensor = x + self.ffn_drop_path(self.ffn(self.ffn_norm(x)))
        return y
