"""Metrics of captions: length, diversity, and fit to the images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

_WORD = re.compile(r"\w+")


@attrs.frozen(kw_only=True)
class Agreement:
    """The fit of captions to their images, by the similarities of one model.

    Args:
        cosine: mean cosine over the captions; comparable only within one model.
        found: share of captions whose own image has the highest similarity of all images.
    """

    cosine: float
    found: float


def agreement(images: Tensor, texts: Sequence[Sequence[str]], embed: Callable[[list[str]], Tensor]) -> Agreement:
    """Return the fit of captions to their images.

    Shape:
        images `(images, dim)`; `embed` returns `(texts, dim)`.

    Args:
        images: embeddings of unit length.
        texts: captions of each image, at least one in total.
        embed: function from texts to embeddings of any length.
    """
    rows = torch.tensor([row for row, several in enumerate(texts) for _ in several])
    embedded = F.normalize(embed([text for several in texts for text in several]), dim=-1)
    cosines, found = [], []
    for part, own in zip(torch.split(embedded, 4_096), torch.split(rows, 4_096), strict=True):
        fits = part @ images.T
        cosines.append(fits.gather(1, own[:, None])[:, 0])
        found.append(fits.argmax(dim=1) == own)
    return Agreement(cosine=torch.cat(cosines).mean().item(), found=torch.cat(found).double().mean().item())


def mean_words(texts: Sequence[Sequence[str]]) -> float:
    """Return the mean length in words of the captions of all images; needs at least one caption."""
    lengths = [len(_words(text)) for text in chain.from_iterable(texts)]
    return sum(lengths) / len(lengths)


def distinct_ngrams(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return the share of distinct n-grams: 1 if no n-gram occurs twice in all captions, 0 if there are no n-grams.

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.
    """
    split = (_words(text) for text in chain.from_iterable(texts))
    grams = [tuple(words[at : at + n]) for words in split for at in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def names_recalled(texts: Sequence[Sequence[str]], names: Sequence[str]) -> float:
    """Return the share of captions that contain the name of their image as consecutive words."""
    held = [
        f" {' '.join(_words(name))} " in f" {' '.join(_words(text))} "
        for several, name in zip(texts, names, strict=True)
        for text in several
    ]
    return sum(held) / len(held) if held else 0.0


def _words(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())
