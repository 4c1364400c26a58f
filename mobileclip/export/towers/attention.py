"""Attention as exports have it: masks that every precision holds."""

from __future__ import annotations

import attrs
from torch import Tensor, nn

from mobileclip.blocks import Attention
from mobileclip.inference.forms.one_token import Attend, SingleQueryAttention, causal_mask


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
        return self.attend(query, key, value, causal_mask(query.shape[-2], query))
