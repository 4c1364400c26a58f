"""Tags: words with a score for each image of an index, calibrated on the collection itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.store import INDEX, read_transaction, write_transaction
from mobileclip.inference import ImageTextModel, fill_templates
from mobileclip.progress import Progress
from mobileclip.registry import nearest
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.terminal import console

Vectors = NDArray[np.float16]

MOST_WORDS = 10_000

LEVELS = np.concatenate([np.linspace(0, 0.99, 100), np.linspace(0.991, 1, 10)])
"""Shares of the collection at which a word's score is kept, finest where a tag is decided."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Known:
    """What is kept of words beside their numbers."""

    about: IndexMetadata
    template: str
    share: float = attrs.field(validator=validators.and_(validators.gt(0), validators.lt(1)))
    words: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class TagWords:
    """Words with their score distribution in an index, for calibrated scores of any image.

    An image's score is the percentile rank of its cosine with the word within the collection: 0.99 means the best
    hundredth. Scores are comparable across images and words, but do not show whether an image contains the word.

    Shape:
        vectors: `(words, dim)`, float16; levels: `(words, len(LEVELS))`, float32, rising.

    Args:
        about: identity of the embedding space.
        template: prompt template of the words.
        share: fraction of the images with a word as a tag.
        words: unique words.
        vectors: embeddings of the words.
        levels: quantiles of each word's cosines over the collection, at `LEVELS`.
    """

    about: IndexMetadata
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
        """Return the calibrated scores of images for a word.

        Shape:
            vectors: `(pictures, dim)`; result: `(pictures,)`, from 0 to 1.

        Args:
            vectors: of unit length.
            place: place of the word.
        """
        word = self.vectors[place].astype(np.float32)
        found: NDArray[np.float64] = np.interp(cosines(vectors, word[None])[:, 0], self.levels[place], LEVELS)
        return found


_OTHERS = "`mobileclip tag` writes other words"
BLOCK = 8192


def cosines(vectors: Vectors | NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of embeddings with others, converting blocks to float32.

    Shape:
        `(n, dim)` and `(m, dim)` to `(n, m)`.
    """
    found = np.empty((len(vectors), len(others)), np.float32)
    for start in range(0, len(vectors), BLOCK):
        found[start : start + BLOCK] = vectors[start : start + BLOCK].astype(np.float32) @ others.T
    return found


def read_tag_words(folder: Path) -> TagWords | None:
    """Return the words for tags of an index, if any.

    Raises:
        ValueError: if the index is damaged, or of a later version of this library.
        OSError: if it cannot be read.
    """
    with read_transaction(folder) as db:
        row = db.execute("SELECT known, embeddings, levels FROM words").fetchone()
    if row is None:
        return None
    try:
        known = from_json(row[0], _Known)
        vectors = np.frombuffer(row[1], np.float16).reshape(len(known.words), known.about.dim)
        levels = np.frombuffer(row[2], np.float32).reshape(len(known.words), len(LEVELS))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / INDEX} is damaged, or of another version of this library: its tags: {error}; write them again: "
            f"`mobileclip tag --vocabulary WORDS.txt --index {folder}`"
        ) from None
    return TagWords(vectors=vectors, levels=levels, **{one: getattr(known, one) for one in _NAMES})


_NAMES = ("about", "template", "share", "words")


def write_tag_words(folder: Path, words: TagWords) -> None:
    """Replace the words of an index, in one transaction.

    Raises:
        OSError: if it cannot be written.
    """
    known = to_json(_Known(**{one: getattr(words, one) for one in _NAMES}))
    numbers = (np.ascontiguousarray(words.vectors, np.float16), np.ascontiguousarray(words.levels, np.float32))
    with write_transaction(folder) as db:
        db.execute("DELETE FROM words")
        db.execute("INSERT INTO words VALUES (?, ?, ?)", (known, *(one.tobytes() for one in numbers)))


SHARE = 0.05
"""Of a collection, that a word is a tag of."""

_LONGEST_WORD = 200
# They would be read as a part of a condition.
_RESERVED = '<>=!~"'
# Of more pictures, so many, evenly spaced, say how a word's scores are spread: each share to a thousandth.
_MOST_CALIBRATED = 100_000
_BLOCK = 64


def make_tag_words(
    given: Sequence[str],
    clip: ImageTextModel,
    about: IndexMetadata,
    pictures: Vectors,
    *,
    template: str,
    share: float,
    show_progress: bool = True,
) -> TagWords:
    """Return words with their embeddings, and how their scores are spread over a collection.

    A word's cosines are ranked within the collection, see `TagWords`.

    Shape:
        pictures: `(pictures, dim)`.

    Args:
        given: the words, unique regardless of case; empty words are skipped.
        clip: the model of the index.
        about: metadata of the index.
        pictures: embeddings of the collection, at least one.
        template: prompt template with `{}`.
        share: fraction of the images that get each word as a tag.
        show_progress: whether to show progress.

    Raises:
        ValueError: if there are no words, no images, too many words, or one cannot be a tag.
    """
    words = _distinct(given)
    if not 0 < share < 1:
        raise ValueError(f"the share is {share}, expected more than 0 and less than 1")
    if "{}" not in template:
        raise ValueError(f"the template '{storage.printable(template)}' has no {{}} for the word")
    if not len(pictures):
        raise ValueError("the index has no images to tag; add some: `mobileclip index FOLDER`")
    vectors = np.empty((len(words), about.dim), np.float16)
    with Progress("tagging", total=len(words), unit="words", console=console(shown=show_progress)) as bar:
        for start in range(0, len(words), _BLOCK):
            some = slice(start, start + _BLOCK)
            vectors[some] = clip.encode_text(fill_templates(words[some], template)).numpy()
            bar.advance(len(words[some]))
    levels = levels_of(pictures, vectors)
    return TagWords(about=about, template=template, share=share, words=tuple(words), vectors=vectors, levels=levels)


def levels_of(pictures: Vectors, words: Vectors) -> NDArray[np.float32]:
    """Return how the scores of words are spread over a collection, see `TagWords.levels`.

    Shape:
        pictures: `(pictures, dim)`; words: `(words, dim)`; result: `(words, len(LEVELS))`.

    Args:
        pictures: embeddings of the collection, at least one.
        words: their embeddings.
    """
    places = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), _MOST_CALIBRATED)).astype(np.int64))
    chosen = pictures if len(places) == len(pictures) else pictures[places]
    levels = np.empty((len(words), len(LEVELS)), np.float32)
    for start in range(0, len(words), _BLOCK):
        some = words[start : start + _BLOCK].astype(np.float32)
        levels[start : start + _BLOCK] = np.quantile(cosines(chosen, some), LEVELS, axis=0).T
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
        raise ValueError("there are no words for tags; give some, one per line")
    if len(words) > MOST_WORDS:
        raise ValueError(f"there are {len(words):,} words, expected {MOST_WORDS:,} at most")
    return list(words.values())
