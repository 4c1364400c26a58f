"""Nucleus sampling whose every draw is decided by a seed: one stream of numbers per caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mobileclip.data.randomness import derived_seed, seeded_rng

# How many ids are sorted, until the nucleus is among them; that of a trained captioner is far smaller than the first.
_SIZES = (256, 4096)


def caption_seed(seed: int, key: str, caption_set: str) -> int:
    """Return the seed of an image's captions.

    Args:
        seed: of the run.
        key: of the sample.
        caption_set: name of the captions' set.
    """
    return derived_seed(seed, "captions", caption_set, key)


def caption_streams(seeds: Sequence[int], *, num_captions: int, num_steps: int) -> Tensor:
    """Return the numbers from [0, 1) that every caption of every image is drawn with.

    Shape:
        (number of seeds * num_captions, num_steps) float64, the captions of an image beside each other.

    Args:
        seeds: one per image.
        num_captions: captions per image; the first ones are the same however many there are.
        num_steps: ids per caption.
    """
    streams = [seeded_rng(seed, "caption", index).random(num_steps) for seed in seeds for index in range(num_captions)]
    return torch.from_numpy(np.stack(streams)) if streams else torch.zeros(0, num_steps, dtype=torch.float64)


def nucleus_ids(logits: Tensor, draws: Tensor, *, top_p: float, temperature: float) -> Tensor:
    """Return one id per row, drawn from the fewest most probable ids that have `top_p` of the probability.

    `P(id) ~ softmax(logits)[id] ** (1 / temperature)` on the nucleus of `softmax(logits)`, and 0 elsewhere. The draw is
    the inverse of the cumulated probability, in float64, from the most probable id on; ids that are equally probable
    come in their order. What a row gives depends on no other row.

    Shape:
        logits (rows, vocab), draws (rows,) float64 -> (rows,) int64.

    Args:
        logits: minus infinity where an id is out of the question.
        draws: from [0, 1).
        top_p: in (0, 1].
        temperature: above 0; below 1 it sharpens.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    # The total of 49408 terms only places the nucleus' edge, for which float32 terms do; what is drawn from is float64.
    most = logits.amax(-1, keepdim=True)
    log_total = most.double() + (logits - most).exp().sum(-1, keepdim=True, dtype=torch.float64).log()
    result = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    vocab_size = logits.shape[-1]
    for size in (*_SIZES, vocab_size):
        ids, log_probs = _most_probable(logits[rows], min(size, vocab_size), log_total[rows])
        result[rows] = _inverse_cdf(ids, log_probs, draws[rows], top_p=top_p, temperature=temperature)
        # An id as probable as the last may be missing, so only those above it count.
        certain = torch.where(log_probs > log_probs[:, -1:], log_probs.exp(), 0).sum(-1)
        rows = rows[certain < top_p]
        if not len(rows):
            break
    return result


def _most_probable(logits: Tensor, size: int, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable ids and their log probabilities in float64, in order."""
    if size < logits.shape[-1]:
        # In ascending order, so that the stable sort breaks ties by id, as it does when all are sorted.
        ids = logits.topk(size, dim=-1).indices.sort(dim=-1).values
        logits = logits.gather(-1, ids)
    else:
        ids = torch.arange(size, device=logits.device).expand(len(logits), -1)
    logits, order = logits.sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), logits.double() - log_total


def _inverse_cdf(ids: Tensor, log_probs: Tensor, draws: Tensor, *, top_p: float, temperature: float) -> Tensor:
    probs = log_probs.exp()
    inside = (probs.cumsum(-1) - probs < top_p) & (probs > 0)
    weights = torch.where(inside, (log_probs / temperature - log_probs[:, :1] / temperature).exp(), 0)
    cumulated = weights.cumsum(-1)
    index = torch.searchsorted(cumulated, draws.unsqueeze(-1) * cumulated[:, -1:], right=True)
    last = inside.sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(index, last)).squeeze(-1)
