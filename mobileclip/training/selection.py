"""Selection of the pairs of a larger batch that the student finds harder than its teachers do."""

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
    """The settings of batch selection: the selected share and the number of chunks.

    Args:
        share: selected fraction of every batch; 1 selects all pairs.
        num_chunks: number of chunks; the selection of a chunk depends on the previous chunks.

    Examples:
        >>> SelectionSpec(share=0.25, num_chunks=3).sizes(40)
        (4, 3, 3)
    """

    share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    num_chunks: int = attrs.field(default=16, validator=validators.gt(0))

    @property
    def leaves_some(self) -> bool:
        """Whether the selection leaves out any pairs."""
        return self.share < 1

    def sizes(self, batch_size: int) -> tuple[int, ...]:
        """Return the number of pairs in each chunk; if the division has a remainder, the first chunks have one more.

        Raises:
            ValueError: if fewer than two pairs of the batch would be selected.
        """
        count = int(self.share * batch_size)
        if count < 2:
            raise ValueError(
                f"a selection of {self.share:g} leaves {count} of {batch_size} pairs, but a loss needs at least two "
                "pairs; use larger batches or a larger share"
            )
        num_chunks = min(self.num_chunks, count)
        return tuple(count // num_chunks + (chunk < count % num_chunks) for chunk in range(num_chunks))


class PairLosses:
    """A model's contrastive loss for every pair of a batch, given the selected pairs.

    `l_i(S) = (log(1 + sum_{j in S} exp(s_ij - s_ii)) + log(1 + sum_{j in S} exp(s_ji - s_ii))) / 2`: the contrastive
    loss of pair i in a batch that consists of S and i, with the similarities `s_ij = scale * image_i @ text_j`.

    Shape:
        image, text (B, D).

    Args:
        image: image embeddings of any length; the class normalises them.
        text: text embeddings, in the order of the images.
        scale: logit scale, after `exp`.
    """

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor | float) -> None:
        self._image = F.normalize(image.float(), dim=1) * scale
        self._text = F.normalize(text.float(), dim=1)
        self._own = (self._image * self._text).sum(1)
        self._over_texts = torch.full_like(self._own, -torch.inf)
        self._over_images = torch.full_like(self._own, -torch.inf)

    def add(self, chosen: Tensor) -> None:
        """Add pairs to S; the losses are then valid for pairs outside S.

        Args:
            chosen: indices of the pairs.
        """
        over_texts = (self._image @ self._text[chosen].mT).logsumexp(1)
        over_images = (self._text @ self._image[chosen].mT).logsumexp(1)
        self._over_texts = torch.logaddexp(self._over_texts, over_texts)
        self._over_images = torch.logaddexp(self._over_images, over_images)

    def beside_chosen(self) -> Tensor:
        """Return `l_i(S)`; shape (B,)."""
        return (F.softplus(self._over_texts - self._own) + F.softplus(self._over_images - self._own)) / 2

    def beside_all(self) -> Tensor:
        """Return the loss of every pair in the whole batch, shape (B,); memory grows linearly with the batch."""
        starts = range(0, len(self._own), _BLOCK)
        over_texts = torch.cat([(self._image[at : at + _BLOCK] @ self._text.mT).logsumexp(1) for at in starts])
        over_images = torch.cat([(self._text[at : at + _BLOCK] @ self._image.mT).logsumexp(1) for at in starts])
        return (over_texts + over_images) / 2 - self._own


@attrs.frozen(kw_only=True, eq=False)
class Learnability:
    """The student's loss minus the teachers' mean loss for each pair, with one caption set.

    Args:
        student: losses of the student.
        teachers: losses of each teacher; the class uses their mean.
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
        """Return `student - mean(teachers)` in the whole batch; shape (B,)."""
        return self.student.beside_all() - torch.stack([one.beside_all() for one in self.teachers]).mean(0)


def choose_pairs(spec: SelectionSpec, captions: Sequence[Learnability], draws: Tensor) -> Tensor:
    """Return the indices of the pairs that a step trains on, in ascending order.

    The function samples pairs without replacement, with softmax probabilities: the first chunk by the learnability in
    the whole batch, and further chunks by the learnability given the selected pairs.

    Shape: draws (chunks, B), from [0, 1) -> (chosen,).

    Args:
        spec: settings of the selection.
        captions: learnability with each caption set, before any pair is selected; the function adds them up.
        draws: uniform random numbers.

    Source: Evans et al., "Data curation via joint example selection further accelerates multimodal learning", algorithm
        1, with learnability as the score. Differs: the terms are those of a softmax loss. The reference is the
        teachers' stored embeddings of the same views and captions, so no reference model runs. The algorithm samples
        the first chunk by the pairs' own terms, which a softmax loss does not have; this function uses the learnability
        in the whole batch instead.
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
