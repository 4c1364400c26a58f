"""The words that pictures of an index are tagged with, and how their scores are spread over the collection."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip.collections.store.about import About
from mobileclip.collections.store.database import INDEX, changing, reading

Vectors = NDArray[np.float16]
from mobileclip.registry import nearest
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

MOST_WORDS = 10_000

LEVELS = np.concatenate([np.linspace(0, 0.99, 100), np.linspace(0.991, 1, 10)])
"""Shares of the collection at which a word's score is kept, finest where a tag is decided."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Known:
    """What is kept of words beside their numbers."""

    about: About
    template: str
    share: float = attrs.field(validator=validators.and_(validators.gt(0), validators.lt(1)))
    words: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class Words:
    """Words with what they score in a collection, by which any picture has a calibrated score for each.

    The score of a picture is the share of the collection that fits the word less, by the cosine with it: 0.99 is a
    picture among the hundredth that fits best. It compares pictures for a word, and words for a picture; that the word
    is there at all, it does not say.

    Shape:
        vectors: `(words, dim)`, float16; levels: `(words, len(LEVELS))`, float32, rising.

    Args:
        about: whose space the embeddings are in.
        template: that each word was put into.
        share: of the collection that has a word as a tag, those that fit it best.
        words: each once.
        vectors: embeddings of the words.
        levels: cosines of each word that `LEVELS` of the collection are below of.
    """

    about: About
    template: str
    share: float
    words: tuple[str, ...]
    vectors: NDArray[np.float16]
    levels: NDArray[np.float32]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word.casefold(): place for place, word in enumerate(self.words)}

    def place(self, word: str) -> int:
        """Return where a word is, whatever the case of its letters.

        Raises:
            ValueError: if there is none such.
        """
        if (place := self._places.get(word.casefold())) is None:
            raise ValueError(f"there is no tag {word!r}; {nearest(word, self.words, otherwise=_OTHERS)}")
        return place

    def scores(self, vectors: Vectors, place: int) -> NDArray[np.float64]:
        """Return the calibrated scores of pictures for a word.

        Shape:
            vectors: `(pictures, dim)`; result: `(pictures,)`, from 0 to 1.

        Args:
            vectors: of unit length.
            place: of the word.
        """
        word = self.vectors[place].astype(np.float32)
        found: NDArray[np.float64] = np.interp(cosines(vectors, word[None])[:, 0], self.levels[place], LEVELS)
        return found


_OTHERS = "`mobileclip tag` writes other words"
BLOCK = 8192


def cosines(vectors: Vectors | NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of embeddings with others, of which a block at a time is made float32.

    Shape:
        `(n, dim)` and `(m, dim)` to `(n, m)`.
    """
    found = np.empty((len(vectors), len(others)), np.float32)
    for start in range(0, len(vectors), BLOCK):
        found[start : start + BLOCK] = vectors[start : start + BLOCK].astype(np.float32) @ others.T
    return found


def read_words(folder: Path) -> Words | None:
    """Return the words that an index is tagged with, if it is.

    Raises:
        ValueError: if the index is damaged, or of a later version of this library.
        OSError: if it cannot be read.
    """
    with reading(folder) as db:
        row = db.execute("SELECT known, embeddings, levels FROM words").fetchone()
    if row is None:
        return None
    try:
        known = from_json(row[0], _Known)
        vectors = np.frombuffer(row[1], np.float16).reshape(len(known.words), known.about.dim)
        levels = np.frombuffer(row[2], np.float32).reshape(len(known.words), len(LEVELS))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / INDEX} is damaged, or of another version of this library: its tags: {error}; write them anew: "
            f"`mobileclip tag {folder} --vocabulary WORDS.txt`"
        ) from None
    return Words(vectors=vectors, levels=levels, **{one: getattr(known, one) for one in _NAMES})


_NAMES = ("about", "template", "share", "words")


def write_words(folder: Path, words: Words) -> None:
    """Put words in the place of those that an index had, all of it or nothing.

    Raises:
        OSError: if it cannot be written.
    """
    known = to_json(_Known(**{one: getattr(words, one) for one in _NAMES}))
    numbers = (np.ascontiguousarray(words.vectors, np.float16), np.ascontiguousarray(words.levels, np.float32))
    with changing(folder) as db:
        db.execute("DELETE FROM words")
        db.execute("INSERT INTO words VALUES (?, ?, ?)", (known, *(one.tobytes() for one in numbers)))
