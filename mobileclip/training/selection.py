"""Batch selection: train only on the image-text pairs that are harder for the student than for the teachers."""

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
        num_chunks: number of chunks of selected pairs. `choose_pairs` samples one chunk after another; the
            probabilities for a chunk depend on the pairs in the previous chunks.

    Examples:
        >>> SelectionSpec(share=0.25, num_chunks=3).sizes(40)
        (4, 3, 3)
    """

    share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    num_chunks: int = attrs.field(default=16, validator=validators.gt(0))

    @property
    def is_active(self) -> bool:
        """Whether the selection leaves out any pairs."""
        return self.share < 1

    def sizes(self, batch_size: int) -> tuple[int, ...]:
        """Return the number of selected pairs per chunk; the first chunks get the remainder, one pair each.

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
    loss of pair i in a batch of the selected pairs S and pair i, with the similarities `s_ij = scale * image_i @
    text_j`.

    Shape:
        image, text (B, D).

    Args:
        image: image embeddings, normalised or not.
        text: text embeddings in the order of the images, normalised or not.
        scale: logit scale, after `exp`.
    """

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor | float) -> None:
        self._image = F.normalize(image.float(), dim=1) * scale
        self._text = F.normalize(text.float(), dim=1)
        self._own = (self._image * self._text).sum(1)
        self._over_texts = torch.full_like(self._own, -torch.inf)
        self._over_images = torch.full_like(self._own, -torch.inf)

    def add(self, chosen: Tensor) -> None:
        """Add pairs to the selected pairs S; `given_selected` is then valid only for pairs outside S.

        Args:
            chosen: indices of the pairs to add.
        """
        over_texts = (self._image @ self._text[chosen].mT).logsumexp(1)
        over_images = (self._text @ self._image[chosen].mT).logsumexp(1)
        self._over_texts = torch.logaddexp(self._over_texts, over_texts)
        self._over_images = torch.logaddexp(self._over_images, over_images)

    def given_selected(self) -> Tensor:
        """Return the loss `l_i(S)` of every pair i given the selected pairs S; shape (B,)."""
        return (F.softplus(self._over_texts - self._own) + F.softplus(self._over_images - self._own)) / 2

    def in_batch(self) -> Tensor:
        """Return the loss of every pair in the whole batch, shape (B,); memory use is linear in the batch size."""
        starts = range(0, len(self._own), _BLOCK)
        over_texts = torch.cat([(self._image[at : at + _BLOCK] @ self._text.mT).logsumexp(1) for at in starts])
        over_images = torch.cat([(self._text[at : at + _BLOCK] @ self._image.mT).logsumexp(1) for at in starts])
        return (over_texts + over_images) / 2 - self._own


@attrs.frozen(kw_only=True, eq=False)
class Learnability:
    """Learnability of each pair with one caption set: the student's loss minus the mean of the teachers' losses.

    Args:
        student: pair losses of the student's embeddings.
        teachers: pair losses of each teacher's embeddings.
    """

    student: PairLosses
    teachers: Sequence[PairLosses]

    def add(self, chosen: Tensor) -> None:
        """Add the pairs with the indices `chosen` to the selection."""
        for losses in (self.student, *self.teachers):
            losses.add(chosen)

    def given_selected(self) -> Tensor:
        """Return `student - mean(teachers)` given the selected pairs; shape (B,)."""
        return self.student.given_selected() - torch.stack([one.given_selected() for one in self.teachers]).mean(0)

    def in_batch(self) -> Tensor:
        """Return `student - mean(teachers)` in the whole batch; shape (B,)."""
        return self.student.in_batch() - torch.stack([one.in_batch() for one in self.teachers]).mean(0)


def choose_pairs(spec: SelectionSpec, captions: Sequence[Learnability], draws: Tensor) -> Tensor:
    """Return the indices of the pairs that a step trains on, in ascending order.

    The function samples pairs without replacement. The probabilities are the softmax of the learnability: in the whole
    batch for the first chunk, and given the selected pairs for later chunks.

    Shape: draws (chunks, B) -> (selected pairs,).

    Args:
        spec: settings of the selection.
        captions: learnability with each caption set, before any pair is selected; the score is the sum over caption
            sets.
        draws: uniform random numbers in [0, 1), one per chunk and pair.

    Source: Evans et al., "Data curation via joint example selection further accelerates multimodal learning", algorithm
        1, with learnability as the score. Differs: the losses are softmax losses. The teachers' stored embeddings of
        the same views and captions replace the reference model. For the first chunk, the algorithm uses the part of the
        loss that depends only on the pair itself. A softmax loss has no such part, so this function uses the
        learnability in the whole batch.
    """
    score = torch.stack([one.in_batch() for one in captions]).sum(0)
    is_chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    for chunk, size in enumerate(spec.sizes(len(score))):
        noise = -torch.log(-torch.log(draws[chunk])).to(score)
        drawn = torch.where(is_chosen, -torch.inf, score + noise).topk(size).indices
        is_chosen[drawn] = True
        for one in captions:
            one.add(drawn)
        score = torch.stack([one.given_selected() for one in captions]).sum(0)
    return is_chosen.nonzero().flatten()
