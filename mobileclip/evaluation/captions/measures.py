"""What can be said of captions without looking at the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def mean_words(texts: Sequence[Sequence[str]]) -> float:
    """Return the mean length of captions, in words.

    Args:
        texts: of each picture; at least one in all.
    """
    lengths = [len(words_of(text)) for text in chain.from_iterable(texts)]
    return sum(lengths) / len(lengths)


def distinct_ngrams(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return the share of n-grams that differ: 1 where none comes twice in all captions, 0 where there is none.

    Args:
        texts: of each picture.
        n: words of a gram.

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.

    Examples:
        >>> distinct_ngrams([("a red heart", "a red star")], 2)  # a red, red heart, a red, red star
        0.75
    """
    split = (words_of(text) for text in chain.from_iterable(texts))
    grams = [tuple(words[at : at + n]) for words in split for at in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def names_recalled(texts: Sequence[Sequence[str]], names: Sequence[str]) -> float:
    """Return the share of captions that hold the name of their picture, its words beside each other.

    Args:
        texts: of each picture.
        names: of each.

    Examples:
        >>> names_recalled([("a drawing of an arrow left", "an arrow")], ["arrow left"])
        0.5
    """
    held = [
        f" {' '.join(words_of(name))} " in f" {' '.join(words_of(text))} "
        for several, name in zip(texts, names, strict=True)
        for text in several
    ]
    return sum(held) / len(held) if held else 0.0
