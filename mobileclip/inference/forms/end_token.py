"""Cuts padded texts behind their end token, which leaves the embeddings unchanged."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks import EndTokenPool
from mobileclip.blocks.stages import TextPool
from mobileclip.encoders import TextEncoder, TextEncoderSpec
from mobileclip.inputs import TextInput


def cut_behind_the_end(tokens: Tensor, pool: TextPool) -> Tensor:
    """Return the tokens of a batch that a causal tower's embeddings depend on.

    No token sees a later one, and the embedding is read up to the end token: the batch is cut behind the last of its
    end tokens. Towers of other kinds attend to the padding.

    Shape:
        `(batch, context_length)` to `(batch, tokens)`.
    """
    return tokens[:, : int(pool.position(tokens).max()) + 1] if len(tokens) else tokens


def by_length(tokens: Tensor, contract: TextInput) -> Tensor:
    """Return the order in which texts of like length stand side by side, so that few are cut later than they end.

    Shape:
        `(texts, context_length)` to `(texts,)`.

    Args:
        tokens: ids.
        contract: that they were made for.
    """
    return EndTokenPool(end_id=contract.pooled_id).position(tokens).argsort(stable=True)


def reads_text(tower: nn.Module) -> bool:
    """Whether a tower embeds texts: its spec says so, of this library's kinds or of another."""
    return isinstance(getattr(tower, "spec", None), TextEncoderSpec) or isinstance(tower, TextEncoder)


def causal_pool(tower: object) -> TextPool | None:
    """Return the pooling of a text tower with a causal mask; None for other towers."""
    if isinstance(tower, TextEncoder) and tower.spec is not None and (tower.spec.causal or not len(tower.layers)):
        return tower.pool
    return None
