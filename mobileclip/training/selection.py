"""Selects the pairs of a larger batch that the student finds harder than its teachers do."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import validators
from torch import Tensor
from torch.nn import functional as F

from mobileclip.strict import strict

_BLOCK = 1024


@attrs.frozen(kw_only=True, field_transformer=strict)
class SelectionSpec:
    """The settings of batch selection: share and number of chunks.

    Args:
        share: selected fraction of every batch; 1 selects all.
        num_chunks: number of chunks; each chunk depends on the chunks before.

    Examples:
        >>> SelectionSpec(share=0.25, num_chunks=3).sizes(40)
        (4, 3, 3)
    """

    share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    num_chunks: int = attrs.field(default=16, validator=validators.gt(0))

    @property
    def leaves_some(self) -> bool:
        """Whether there is anything to choose."""
        return self.share < 1

    def sizes(self, batch_size: int) -> tuple[int, ...]:
        """Return the number of pairs drawn in each chunk; the first ones draw one more if the division leaves a rest.

        Raises:
            ValueError: if fewer than two pairs would be left of the batch.
        """
        count = int(self.share * batch_size)
        if count < 2:
            raise ValueError(
                f"a selection of {self.share:g} leaves {count} of {batch_size} pairs, and a loss compares two at "
                "least; take larger batches or a larger share"
            )
        num_chunks = min(self.num_chunks, count)
        return tuple(count // num_chunks + (chunk < count % num_chunks) for chunk in range(num_chunks))


class PairLosses:
    """A model's contrastive loss of every pair of a batch, given the selected pairs.

    `l_i(S) = (log(1 + sum_{j in S} exp(s_ij - s_ii)) + log(1 + sum_{j in S} exp(s_ji - s_ii))) / 2`: the contrastive
    loss of pair i in the batch of S and i, with the similarities `s_ij = scale * image_i @ text_j`.

    Shape:
        image, text (B, D).

    Args:
        image: embeddings, brought to unit length here.
        text: embeddings, row by row their partners.
        scale: after `exp`.
    """

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor | float) -> None:
        self._image = F.normalize(image.float(), dim=1) * scale
        self._text = F.normalize(text.float(), dim=1)
        self._own = (self._image * self._text).sum(1)
        self._over_texts = torch.full_like(self._own, -torch.inf)
        self._over_images = torch.full_like(self._own, -torch.inf)

    def add(self, chosen: Tensor) -> None:
        """Add pairs to S; the losses then hold for pairs outside it.

        Args:
            chosen: their places.
        """
        over_texts = (self._image @ self._text[chosen].mT).logsumexp(1)
        over_images = (self._text @ self._image[chosen].mT).logsumexp(1)
        self._over_texts = torch.logaddexp(self._over_texts, over_texts)
        self._over_images = torch.logaddexp(self._over_images, over_images)

    def beside_chosen(self) -> Tensor:
        """Return `l_i(S)`; shape (B,)."""
        return (F.softplus(self._over_texts - self._own) + F.softplus(self._over_images - self._own)) / 2

    def beside_all(self) -> Tensor:
        """Return the loss of every pair in the whole batch; shape (B,). Memory grows with the batch, not its square."""
        starts = range(0, len(self._own), _BLOCK)
        over_texts = torch.cat([(self._image[at : at + _BLOCK] @ self._text.mT).logsumexp(1) for at in starts])
        over_images = torch.cat([(self._text[at : at + _BLOCK] @ self._image.mT).logsumexp(1) for at in starts])
        return (over_texts + over_images) / 2 - self._own


@attrs.frozen(kw_only=True, eq=False)
class Learnability:
    """The excess of the student's loss over the teachers' for each pair, with one caption set.

    Args:
        student: its losses.
        teachers: theirs; the mean of them counts.
    """

    student: PairLosses
    teachers: Sequence[PairLosses]

    def add(self, chosen: Tensor) -> None:
        """Add pairs to the selection."""
        for losses in (self.student, *self.teachers):
            losses.add(chosen)

    def beside_chosen(self) -> Tensor:
        """Return `student - mean(teachers)` given the selected pairs; shape (B,)."""
        return self.student.beside_chosen() - torch.stack([one.beside_chosen() for one in self.teachers]).mean(0)

    def beside_all(self) -> Tensor:
        """Return the same in the whole batch; shape (B,)."""
        return self.student.beside_all() - torch.stack([one.beside_all() for one in self.teachers]).mean(0)


def choose_pairs(spec: SelectionSpec, captions: Sequence[Learnability], draws: Tensor) -> Tensor:
    """Return the places of the pairs that a step learns from, in ascending order.

    Sample the first chunk by the learnability in the whole batch, and further chunks by the learnability given the
    selected pairs: without replacement, with softmax probabilities.

    Shape:
        draws (chunks, B), from [0, 1) -> (chosen,).

    Args:
        spec: share and number of chunks.
        captions: losses of every caption set before selection; they are summed.
        draws: random numbers.

    Source: Evans et al., "Data curation via joint example selection further accelerates multimodal learning", algorithm
        1, with learnability as the score. Differs: the terms are those of a softmax loss, and the reference is what
        teachers have stored of the same views and captions, so no reference model runs. The algorithm draws the first
        chunk by the pairs' own terms, which a softmax loss lacks; here the learnability in the whole batch decides.
    """
    score = torch.stack([one.beside_all() for one in captions]).sum(0)
    is_chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    for chunk, size in enumerate(spec.sizes(len(score))):
        noise = -torch.log(-torch.log(draws[chunk])).to(score)
        drawn = torch.where(is_chosen, -torch.inf, score + noise).topk(size).indices
        is_chosen[drawn] = True
        for one in captions:
            one.add(drawn)
        score = torch.stack([one.beside_chosen() for one in captions]).sum(0)
    return is_chosen.nonzero().flatten()
