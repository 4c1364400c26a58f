"""Tags: words with a score for each picture of an index, calibrated on the collection itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.opened import OpenedIndex
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.words import LEVELS, MOST_WORDS, Words, cosines
from mobileclip.inference.image_text_model import filled_in
from mobileclip.progress import Progress
from mobileclip.terminal import console

SHARE = 0.05
"""Of a collection, that a word is a tag of."""

_LONGEST_WORD = 200
# They would be read as a part of a condition.
_RESERVED = '<>=!~"'
# Of more pictures, so many, evenly spaced, say how a word's scores are spread: each share to a thousandth.
_MOST_CALIBRATED = 100_000
_BLOCK = 64


def make_words(
    index: OpenedIndex, given: Sequence[str], *, template: str, share: float, show_progress: bool = True
) -> Words:
    """Return words with their embeddings, and how their scores are spread over a collection.

    A word's cosines are compared with its own over the collection, and with nothing else: see `Words`.

    Args:
        index: with its pictures.
        given: the words, each once whatever the case of its letters; empty ones are left out.
        template: the sentence that each is put into, with `{}` in its place.
        share: of the collection that has each word as a tag.
        show_progress: whether to show how far it is.

    Raises:
        ValueError: if there are no words, no pictures, too many words, or one cannot be a tag.
    """
    words = _distinct(given)
    if not 0 < share < 1:
        raise ValueError(f"the share is {share}, expected more than 0 and less than 1")
    if "{}" not in template:
        raise ValueError(f"the template '{storage.printable(template)}' has no {{}} for the word")
    snapshot = index.snapshot
    if not len(snapshot):
        raise ValueError(f"the index {index.path} has no pictures to tag; add some: `mobileclip index FOLDER`")
    vectors = np.empty((len(words), index.store.about.dim), np.float16)
    with Progress("tagging", total=len(words), unit="words", console=console(shown=show_progress)) as bar:
        for start in range(0, len(words), _BLOCK):
            some = slice(start, start + _BLOCK)
            vectors[some] = index.clip.encode_text(filled_in(words[some], template)).numpy()
            bar.advance(len(words[some]))
    about, levels = index.store.about, levels_of(snapshot, vectors)
    return Words(about=about, template=template, share=share, words=tuple(words), vectors=vectors, levels=levels)


def levels_of(snapshot: Snapshot, words: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return how the scores of words are spread over a collection, see `Words.levels`.

    Shape:
        words: `(words, dim)`; result: `(words, len(LEVELS))`.

    Args:
        snapshot: of the collection, with at least one picture.
        words: their embeddings.
    """
    places = np.unique(np.linspace(0, len(snapshot) - 1, min(len(snapshot), _MOST_CALIBRATED)).astype(np.int64))
    pictures = snapshot.vectors if len(places) == len(snapshot) else snapshot.vectors[places]
    levels = np.empty((len(words), len(LEVELS)), np.float32)
    for start in range(0, len(words), _BLOCK):
        some = words[start : start + _BLOCK].astype(np.float32)
        levels[start : start + _BLOCK] = np.quantile(cosines(pictures, some), LEVELS, axis=0).T
    return levels


def _distinct(given: Sequence[str]) -> list[str]:
    """Return the words of some lines, in their order."""
    words: dict[str, str] = {}
    for line in given:
        word = " ".join(line.split())
        if len(word) > _LONGEST_WORD or any(mark in word for mark in _RESERVED) or not word.isprintable():
            raise ValueError(
                f"'{storage.printable(word, limit=_LONGEST_WORD)}' cannot be a tag; expected at most {_LONGEST_WORD} "
                f"letters, and none of {' '.join(_RESERVED)}"
            )
        if word:
            words.setdefault(word.casefold(), word)
    if not words:
        raise ValueError("there are no words to tag pictures with; give some, one a line")
    if len(words) > MOST_WORDS:
        raise ValueError(f"there are {len(words):,} words, expected {MOST_WORDS:,} at most")
    return list(words.values())
