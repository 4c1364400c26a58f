"""Attention as exports have it: masks that every precision holds, and one query where one token is read."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, BlockSequence, TransformerLayer
from mobileclip.blocks.picking import pick
from mobileclip.encoders import TextEncoder, ViT
from mobileclip.reparam import with_children

# From queries, keys, values, all `(batch, heads, tokens, head_dim)`, and what is added to `query key^T`, to values.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# The usual mask holds -inf or -3.4e38, which float16 cannot, and which some runtimes turn into NaN. This is within
# float16, and `exp` of it is zero in float32 already.
_MASKED = -1e4


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return `softmax(query key^T / sqrt(head_dim) + mask) value` by the one operation that runtimes know.

    Shape:
        all `(batch, heads, tokens, head_dim)`; the mask, `(..., queries, tokens)`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return what `fused_attention` does by products and a softmax.

    PyTorch's own attention looks for rows that are masked throughout, of which there are none, with operations that
    some runtimes lack.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    attended: Tensor = (logits if mask is None else logits + mask).softmax(-1) @ value
    return attended


def set_attention(graph: nn.Module, attend: Attend) -> None:
    """Let every attention of a graph compute with `attend`."""
    for module in graph.modules():
        if isinstance(module, Attention):
            module.backend = _Masked(attend=attend)
        elif isinstance(module, SingleQueryAttention):
            module.attend = attend


@attrs.frozen(kw_only=True)
class _Masked:
    """A backend of attention that hands its mask over."""

    attend: Attend

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        """Return the attended values."""
        if not causal:
            return self.attend(query, key, value, None)
        return self.attend(query, key, value, _causal_mask(query.shape[-2], query))


def _causal_mask(tokens: int, like: Tensor) -> Tensor:
    """Return what keeps each token from seeing later ones, of the type of `like`.

    Shape:
        `(tokens, tokens)`.
    """
    return torch.full((tokens, tokens), _MASKED, dtype=like.dtype, device=like.device).triu(1)


class SingleQueryAttention(nn.Module):
    """What `Attention.at` computes, with a layer for the query and one for keys and values: quantisers want layers.

    Args:
        attention: folded; its weights are shared.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        dim = attention.project.in_features
        self.num_heads, self.causal = attention.num_heads, attention.causal
        self.attend: Attend = fused_attention
        self.query = _part(attention.qkv, 0, dim)
        self.key_value = _part(attention.qkv, dim, 3 * dim)
        self.project = attention.project
        self.eval()

    def at(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return one attended token of each sequence.

        Shape:
            `(batch, tokens, dim)` and `(batch,)` to `(batch, dim)`.
        """
        query = rearrange(self.query(pick(x, index)), "b (h d) -> b h 1 d", h=self.num_heads)
        key_value = rearrange(self.key_value(x), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        # One of the two layers may be kept in float32.
        wide = torch.promote_types(query.dtype, key_value.dtype)
        query, key_value = query.to(wide), key_value.to(wide)
        mask = None
        if self.causal:
            mask = _causal_mask(x.shape[1], query)[torch.as_tensor(index).reshape(-1)][:, None, None]
        attended = self.attend(query, key_value[0], key_value[1], mask)
        y: Tensor = self.project(rearrange(attended, "b h 1 d -> b (h d)"))
        return y


def with_single_query(encoder: nn.Module) -> nn.Module:
    """Return a tower whose last attention is a `SingleQueryAttention`; a tower without such an attention as it is.

    Args:
        encoder: folded; the other one shares its weights.
    """
    if not isinstance(encoder, (TextEncoder, ViT)):
        return encoder
    *layers, last = encoder.layers
    if not isinstance(last, TransformerLayer) or not isinstance(last.attention, Attention):
        return encoder
    last = with_children(last, {"attention": SingleQueryAttention(last.attention)})
    return with_children(encoder, {"layers": BlockSequence(*layers, last).eval()})


def _part(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """Return a layer that gives some of the outputs of another."""
    part = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[start:stop], requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach()[start:stop], requires_grad=False)
    return part
