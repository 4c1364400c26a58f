"""One token of each sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def pick(x: Tensor, index: Tensor | int) -> Tensor:
    """Return the token at `index` of each sequence: `y[i] = x[i, index[i]]`, or the same one of all.

    Shape:
        `(batch, tokens, dim)` and `(batch,)` to `(batch, dim)`.
    """
    if isinstance(index, int):
        return x[:, index]
    return torch.gather(x, 1, index[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
