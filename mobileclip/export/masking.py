"""Causal attention with a mask that every precision and every runtime can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention

# The usual mask holds -inf or -3.4e38, which float16 cannot, and which some runtimes turn into NaN. This is within
# float16, and `exp` of it is zero in float32 already.
MASKED = -1e4


def masked_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Return `softmax(query key^T / sqrt(head_dim) + mask) value`; the mask is zero but for later tokens.

    Shape:
        all `(batch, heads, tokens, head_dim)`.
    """
    if not causal:
        return F.scaled_dot_product_attention(query, key, value)
    tokens = query.shape[-2]
    mask = torch.full((tokens, tokens), MASKED, dtype=query.dtype, device=query.device).triu(1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def set_masked_attention(model: nn.Module) -> None:
    """Let every attention in `model` compute with `masked_attention`."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = masked_attention
