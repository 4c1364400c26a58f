"""Where the right answer stands in a ranking, with ties counted as chance would break them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mobileclip.hardware.devices import in_float64

if TYPE_CHECKING:
    from torch import Tensor


def require_embeddings(name: str, embeddings: Tensor, *, dim: int | None = None) -> None:
    """Refuse what cannot be ranked.

    Args:
        name: what the rows are, for the message.
        embeddings: `(count, dim)`.
        dim: expected length of a row, where another matrix fixes it.

    Raises:
        ValueError: if the shape is wrong, there are no rows, or a value is NaN or infinite; the message names the row.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} embeddings must be a floating point (count, dim) matrix, got {embeddings.dtype} of shape "
            f"{tuple(embeddings.shape)}"
        )
    if embeddings.shape[0] == 0:
        raise ValueError(f"there are no {name} embeddings; an evaluation needs at least one")
    if dim is not None and embeddings.shape[1] != dim:
        raise ValueError(
            f"{name} embeddings have {embeddings.shape[1]} dimensions, the other side has {dim}; "
            f"both must come from one model"
        )
    finite = embeddings.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name} embedding {row} holds NaN or infinity; check the weights of the model")


def hit_probability(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Return, per row, how likely one of the relevant columns is among the `k` best.

    Without ties it is 0 or 1. Columns of equal score are in random order: with `m = k - better` places left for a tie
    of `wrong` irrelevant and `right` relevant columns, `1 - C(wrong, m) / C(wrong + right, m)`, in
    which the orders of the places, `m!`, cancel. A model that gives
    every pair the same score so gets exactly what guessing gets.

    Shape:
        scores, relevant: `(rows, columns)`; result: `(rows,)`, float64.

    Args:
        scores: higher is better; finite.
        relevant: boolean, at least one true column per row.
        k: how many places count, at least 1.
    """
    scores = in_float64(scores)
    relevant = relevant.to(scores.device)
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    better = (scores > best).sum(dim=1).double()
    tied = scores == best
    right = (tied & relevant).sum(dim=1).double()
    wrong = (tied & ~relevant).sum(dim=1).double()
    places = (k - better).clamp(min=0)
    certain = places > wrong
    places = torch.where(certain, torch.zeros_like(places), places)
    return torch.where(
        certain,
        torch.ones_like(places),
        1 - torch.exp(_log_orders(wrong, places) - _log_orders(wrong + right, places)),
    )


def _log_orders(total: Tensor, places: Tensor) -> Tensor:
    """Return the logarithm of the number of ways to fill places from a total: `total! / (total - places)!`."""
    return torch.lgamma(total + 1) - torch.lgamma(total - places + 1)
