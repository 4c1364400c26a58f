"""The kernels that can compute scaled dot-product attention, by name."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.extras import advice
from mobileclip.registry import Registry


class AttentionBackend(Protocol):
    """A function from queries, keys and values to attended values.

    Shape:
        all `(batch, heads, tokens, head_dim)`.

    Examples:
        >>> attend: AttentionBackend = attention_backends["sdpa"]
        >>> query, key, value = torch.rand(3, 1, 2, 5, 4)
        >>> attended = attend(query, key, value, causal=True)
        >>> torch.allclose(attended[:, :, 0], value[:, :, 0])  # the first token sees itself alone
        True
    """

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        """Return `softmax(query key^T / sqrt(head_dim)) value`; with `causal`, over earlier tokens only."""


class Attending(nn.Module):
    """A module that attends by a backend: what `set_attention_backend` looks for."""

    backend: AttentionBackend


attention_backends: Registry[AttentionBackend] = Registry("attention_backend")
"""Kernels of attention by name.

Third parties add theirs here or by an entry point in `mobileclip.attention_backend`.
"""


@attention_backends.register("sdpa")
def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend with PyTorch's fused kernel, the default."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


@attention_backends.register("reference")
def reference_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend by the formula, written out and in at least float32: slow, and what the others are checked against."""
    wide, device = torch.promote_types(query.dtype, torch.float32), query.device
    # Autocast would narrow both products again.
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
        ValueError: on another device.
        ImportError: where xformers is not installed; the message has the command that installs it.
    """
    if query.device.type != "cuda":
        raise ValueError(
            f"the attention backend 'xformers' runs on CUDA devices only, and these tensors are on {query.device}; "
            "move the model to a GPU or use the backend 'sdpa'"
        )
    try:
        from xformers import ops
    except ImportError as error:
        raise ImportError(f"the attention backend 'xformers' needs xformers: {advice('xformers')}") from error
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mask = ops.LowerTriangularMask() if causal else None
    attended: Tensor = ops.memory_efficient_attention(query, key, value, attn_bias=mask)
    return attended.transpose(1, 2)
