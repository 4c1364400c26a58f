"""Tags images with words, and calibrates the scores of each word on the images of the index."""

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
"""Levels of the quantiles that an index stores for a word's cosines; finest near 1, since high scores become tags."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Known:
    """The stored fields of tag words, except for arrays."""

    about: IndexMetadata
    template: str
    share: float = attrs.field(validator=validators.and_(validators.gt(0), validators.lt(1)))
    words: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class TagWords:
    """Tag words, with the distribution of each word's cosines over the images of an index.

    The score of an image for a word is the percentile rank of the image's cosine within the collection: 0.99 means the
    best 1 %. Scores are comparable across images and words, but do not tell whether an image shows the word.

    Shape:
        vectors: `(words, dim)`, float16; levels: `(words, len(LEVELS))`, float32, ascending.

    Args:
        about: metadata of the index, including the model that computed `vectors`.
        template: prompt template of the words, such as `a photo of a {}`.
        share: for each word, fraction of the images that get this word as a tag.
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
    def _indices(self) -> dict[str, int]:
        return {word.casefold(): index for index, word in enumerate(self.words)}

    def index_of(self, word: str) -> int:
        """Return the position of a word, ignoring case.

        Raises:
            ValueError: if the word is unknown.
        """
        if (index := self._indices.get(word.casefold())) is None:
            raise ValueError(f"there is no tag {word!r}; {nearest(word, self.words, otherwise=_OTHERS)}")
        return index

    def scores(self, vectors: Vectors, index: int) -> NDArray[np.float64]:
        """Return the calibrated scores of images for a word.

        Shape:
            vectors: `(images, dim)`; result: `(images,)`, from 0 to 1.

        Args:
            vectors: embeddings of the images, of unit length.
            index: position of the word.
        """
        word = self.vectors[index].astype(np.float32)
        found: NDArray[np.float64] = np.interp(cosines(vectors, word[None])[:, 0], self.levels[index], LEVELS)
        return found


_OTHERS = "`mobileclip tag` writes tags for other words"
BLOCK = 8192


def cosines(vectors: Vectors | NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines between two sets of embeddings, computed in float32 block by block.

    Shape:
        vectors: `(n, dim)`; others: `(m, dim)`; result: `(n, m)`.
    """
    found = np.empty((len(vectors), len(others)), np.float32)
    for start in range(0, len(vectors), BLOCK):
        found[start : start + BLOCK] = vectors[start : start + BLOCK].astype(np.float32) @ others.T
    return found


def read_tag_words(folder: Path) -> TagWords | None:
    """Return the tag words of an index; None if the index has no tag words.

    Raises:
        ValueError: if the index is damaged, or comes from a later version of this library.
        OSError: if the index cannot be read.
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
            f"{folder / INDEX} is damaged, or of another version of this library (tags: {error}); "
            f"replace the tags: `mobileclip tag --vocabulary WORDS.txt --index {folder}`"
        ) from None
    return TagWords(vectors=vectors, levels=levels, **{one: getattr(known, one) for one in _NAMES})


_NAMES = ("about", "template", "share", "words")


def write_tag_words(folder: Path, words: TagWords) -> None:
    """Replace the tag words of an index, in one transaction.

    Raises:
        OSError: if the index cannot be written.
    """
    known = to_json(_Known(**{one: getattr(words, one) for one in _NAMES}))
    numbers = (np.ascontiguousarray(words.vectors, np.float16), np.ascontiguousarray(words.levels, np.float32))
    with write_transaction(folder) as db:
        db.execute("DELETE FROM words")
        db.execute("INSERT INTO words VALUES (?, ?, ?)", (known, *(one.tobytes() for one in numbers)))


SHARE = 0.05
"""Default value of `TagWords.share`."""

_LONGEST_WORD = 200
# Conditions use these characters.
_RESERVED = '<>=!~"'
# Maximum number of images for calibration, evenly spaced: every quantile is exact to a thousandth.
_MOST_CALIBRATED = 100_000
_BLOCK = 64


def make_tag_words(
    given: Sequence[str],
    clip: ImageTextModel,
    about: IndexMetadata,
    images: Vectors,
    *,
    template: str,
    share: float,
    show_progress: bool = True,
) -> TagWords:
    """Encode words, compute the distribution of each word's cosines over a collection, and return the tag words.

    Scores are percentile ranks of a word's cosines within the collection, see `TagWords`.

    Shape:
        images: `(images, dim)`.

    Args:
        given: words or phrases; the function skips empty words, and duplicates that differ only in case.
        clip: model of the index.
        about: metadata of the index.
        images: embeddings of the collection's images, at least one.
        template: prompt template with one `{}`.
        share: for each word, fraction of the images that get this word as a tag.
        show_progress: whether to show progress.

    Raises:
        ValueError: if there are no words, no images or too many words, the share is not between 0 and 1, the template
            has no `{}`, or a word is too long or has a reserved character.
    """
    words = _distinct(given)
    if not 0 < share < 1:
        raise ValueError(f"the share is {share}, expected a number above 0 and below 1")
    if "{}" not in template:
        raise ValueError(f"the template '{storage.printable(template)}' has no {{}} for the word")
    if not len(images):
        raise ValueError("the index has no images to tag; add images: `mobileclip index FOLDER`")
    vectors = np.empty((len(words), about.dim), np.float16)
    with Progress("tagging", total=len(words), unit="words", console=console(shown=show_progress)) as bar:
        for start in range(0, len(words), _BLOCK):
            some = slice(start, start + _BLOCK)
            vectors[some] = clip.encode_text(fill_templates(words[some], template)).numpy()
            bar.advance(len(words[some]))
    levels = levels_of(images, vectors)
    return TagWords(about=about, template=template, share=share, words=tuple(words), vectors=vectors, levels=levels)


def levels_of(images: Vectors, words: Vectors) -> NDArray[np.float32]:
    """Return the quantiles of the words' cosines over a collection, see `TagWords.levels`.

    Shape:
        images: `(images, dim)`; words: `(words, dim)`; result: `(words, len(LEVELS))`.

    Args:
        images: embeddings of the collection's images, at least one.
        words: embeddings of the words.
    """
    indices = np.unique(np.linspace(0, len(images) - 1, min(len(images), _MOST_CALIBRATED)).astype(np.int64))
    chosen = images if len(indices) == len(images) else images[indices]
    levels = np.empty((len(words), len(LEVELS)), np.float32)
    for start in range(0, len(words), _BLOCK):
        some = words[start : start + _BLOCK].astype(np.float32)
        levels[start : start + _BLOCK] = np.quantile(cosines(chosen, some), LEVELS, axis=0).T
    return levels


def _distinct(given: Sequence[str]) -> list[str]:
    """Return the distinct words of some lines, in order."""
    words: dict[str, str] = {}
    for line in given:
        word = " ".join(line.split())
        if len(word) > _LONGEST_WORD or any(mark in word for mark in _RESERVED) or not word.isprintable():
            raise ValueError(
                f"'{storage.printable(word, limit=_LONGEST_WORD)}' cannot be a tag; expected at most {_LONGEST_WORD} "
                f"printable characters, without {' '.join(_RESERVED)}"
            )
        if word:
            words.setdefault(word.casefold(), word)
    if not words:
        raise ValueError("the list of tag words is empty; expected one word per line")
    if len(words) > MOST_WORDS:
        raise ValueError(f"there are {len(words):,} words, expected at most {MOST_WORDS:,}")
    return list(words.values())
