"""A text tower without the rows of its vocabulary that given texts never use, which are most of a small tower."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from torch import nn

from mobileclip.data.text import prune_tokens
from mobileclip.encoders import TextEncoder


@attrs.frozen(kw_only=True, eq=False)
class Pruned:
    """A smaller text tower.

    Args:
        tower: with its own smaller tokenizer in its spec's `input`.
        ids: the former id of every token, in the order of the new ones.
        num_other: texts that have other tokens than before, because CLIP's tokenizer repairs broken letters and a
            `tokenizer.json` cannot; all others have equal embeddings, to the bit.
    """

    tower: TextEncoder
    ids: tuple[int, ...]
    num_other: int


def prune_vocabulary(texts: Iterable[str], tower: nn.Module) -> Pruned:
    """Return a text tower without the tokens that texts never use; their embeddings are the same to the bit.

    Bytes and letters stay, so that every other text has an embedding too: by shorter tokens, which the tower may know
    less well.

    Args:
        texts: what is encoded, or what is like it; read once.
        tower: in training form or folded; it stays as it is.

    Raises:
        ValueError: if there is no text, or the tower is another's than the library's.

    Examples:
        >>> tower = mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2).build().eval()
        >>> pruned = prune_vocabulary(["a red heart", "two stars"], tower)
        >>> pruned.tower.spec.input.vocab_size < 600, pruned.num_other
        (True, 0)
    """
    if not isinstance(tower, TextEncoder) or tower.spec is None:
        raise ValueError(
            f"{type(tower).__name__} is no text tower of the library with a spec, and its table is not known"
        )
    found = prune_tokens(texts, tower.spec.input)
    return Pruned(tower=tower.with_vocabulary(found.text, found.ids), ids=found.ids, num_other=found.num_other)
