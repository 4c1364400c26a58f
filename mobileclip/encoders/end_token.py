"""Text embeddings from what the end token depends on alone: exactly those of the tower, for less work."""

from __future__ import annotations

from torch import Tensor

from mobileclip.blocks import EndTokenPool
from mobileclip.encoders.checks import check_tokens
from mobileclip.encoders.text import TextEncoder
from mobileclip.inputs import TextInput


def encode_to_the_end(tower: TextEncoder, tokens: Tensor) -> Tensor:
    """Return what a text tower makes of a batch, `tower(tokens)`, without what no embedding depends on.

    The embedding is read at the end token. So the last layer computes that token alone, and in a causal tower, where no
    token sees a later one, the batch is cut behind the last of its end tokens. Other towers attend to the padding.

    Shape:
        `(batch, context_length)` to `(batch, embedding_dim)`.

    Args:
        tower: in evaluation mode.
        tokens: ids, padded to the tower's context.

    Raises:
        ValueError: if the context is not as long as the spec's.
    """
    check_tokens(tokens, tower.spec.input)
    return tower.encode(cut_behind_the_end(tower, tokens))


def cut_behind_the_end(tower: TextEncoder, tokens: Tensor) -> Tensor:
    """Return the tokens of a batch that its embeddings depend on: all of them, unless the tower is causal.

    Shape:
        `(batch, context_length)` to `(batch, tokens)`.
    """
    if not tower.spec.causal or not len(tokens):
        return tokens
    return tokens[:, : int(tower.pool.position(tokens).max()) + 1]


def by_length(tokens: Tensor, contract: TextInput) -> Tensor:
    """Return the order in which texts of like length stand side by side, so that few are cut later than they end.

    Shape:
        `(texts, context_length)` to `(texts,)`.

    Args:
        tokens: ids.
        contract: that they were made for.
    """
    return EndTokenPool(end_id=contract.pooled_id).position(tokens).argsort(stable=True)
