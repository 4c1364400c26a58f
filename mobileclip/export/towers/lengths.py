"""Lengths of texts that an exported tower takes: padding is cut off where the embedding does not depend on it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mobileclip.blocks import EndTokenPool
from mobileclip.inference.forms import causal_pool
from mobileclip.inputs import TextInput

_SHORTER = (8, 16, 32)
SHORTEST = 3
"""Tokens of a dynamic axis, at least: a side of one, also in front of the last token, would be taken for a constant."""


def lengths_of(encoder: nn.Module, text: TextInput) -> tuple[int, ...]:
    """Return the lengths in which a text tower gives the same embedding, the context length last.

    In a causal tower no token sees the padding behind it. Every other tower was trained with its padding in sight, so
    that a shorter text is another one: the context length alone is right, and nothing is returned.

    Args:
        encoder: as it is exported.
        text: what it takes.
    """
    shorter = tuple(length for length in _SHORTER if length < text.context_length)
    return (*shorter, text.context_length) if shorter and causal_pool(encoder) is not None else ()


def cut_to_length(tokens: Tensor, lengths: Sequence[int], text: TextInput) -> Tensor:
    """Return a batch cut to the shortest of the lengths that holds its texts; as it is where there are none.

    Shape:
        `(batch, context_length)` to `(batch, one of lengths)`.

    Args:
        tokens: of the tower's own tokenizer.
        lengths: of a file, rising, the context length last.
        text: what the tower takes.
    """
    if not lengths or not len(tokens):
        return tokens
    needed = int(EndTokenPool(end_id=text.pooled_id).position(tokens).max()) + 1
    return tokens[:, : next(length for length in lengths if length >= needed)].contiguous()
