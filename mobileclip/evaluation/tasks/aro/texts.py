"""Texts that a model is asked about many times, encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mobileclip.evaluation.encoding.inference import Encoders
from mobileclip.progress import Progress
from mobileclip.terminal import console

# So many batches between two steps of the bar, which texts of like length are sorted among.
_BATCHES_AT_ONCE = 8


def encode_distinct(encoders: Encoders, texts: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Return the embeddings of the texts that differ for the model, and every text's row.

    Texts that become the same ids have one row, such as `a cat, a dog` and `a cat , a dog`: encoded in two batches,
    their embeddings would differ in the last bit, and one of them would be said to be better.

    Shape:
        result: `(rows, dim)`.

    Args:
        encoders: of the model.
        texts: at least one.
    """
    distinct = list(dict.fromkeys(texts))
    row_of_ids: dict[bytes, int] = {}
    row_of: dict[str, int] = {}
    embeddings = []
    step = _BATCHES_AT_ONCE * encoders.batch_size
    shown = console(shown=encoders.show_progress)
    with Progress("captions", total=len(distinct), unit="captions", console=shown) as progress:
        for start in range(0, len(distinct), step):
            part = distinct[start : start + step]
            new = []
            for text, ids in zip(part, encoders.tokenize(part).cpu().numpy(), strict=True):
                key = ids.tobytes()
                if key not in row_of_ids:
                    row_of_ids[key] = len(row_of_ids)
                    new.append(text)
                row_of[text] = row_of_ids[key]
            if new:
                embeddings.append(encoders.encode_texts(new, show_progress=False))
            progress.advance(len(part))
    return torch.cat(embeddings), row_of
