"""Captions in another order: the four ways in which COCO-Order and Flickr30k-Order shuffle words.

Source: Yuksekgonul et al. 2023, section 2.3 (arXiv 2210.01936), and the code that it is published with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mobileclip.data.randomness import seeded_rng
from mobileclip.evaluation.tasks.aro.tagging import treebank_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileclip.evaluation.tasks.aro.tagging import TaggedWords, Tagger

PERTURBATIONS = ("nouns_and_adjectives", "all_but_nouns_and_adjectives", "within_trigrams", "trigrams")

_NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_ADJECTIVES = frozenset({"JJ", "JJR", "JJS"})
_MOST_WORDS = 30
_MARKS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")

Item = TypeVar("Item")


def perturb(caption: str, tagger: Tagger, *, seed: int = 0) -> tuple[str, ...]:
    """Return the caption in four other orders, those of `PERTURBATIONS`.

    - nouns_and_adjectives: the nouns among themselves, and the adjectives among themselves;
    - all_but_nouns_and_adjectives: all other words, marks too, among themselves;
    - within_trigrams: every three words among themselves, from the first one on;
    - trigrams: the threes among themselves.

    Every order is equally likely, the given one too: a caption of one noun and no adjective stays what it is. Words are
    separated by one space, so that marks stand alone. The same caption always comes out the same, whatever was
    perturbed before; another seed gives another benchmark.

    Args:
        caption: as it is published, with its marks.
        tagger: see `SpacyTagger`.
        seed: of the orders.

    Raises:
        ModuleNotFoundError: if NLTK is missing; the message says how to install it.

    Differs: the public code draws from one global generator, so that what a caption becomes depends on those before it.
    """
    generators = [seeded_rng(seed, "perturb", rule, caption) for rule in PERTURBATIONS]
    tagged, words = tagger(caption), treebank_words(caption)
    threes = [words[start : start + 3] for start in range(0, len(words), 3)]
    return (
        " ".join(_shuffle_tagged(tagged, (_NOUNS, _ADJECTIVES), generators[0])),
        " ".join(_shuffle_tagged(tagged, (_others(tagged),), generators[1])),
        " ".join(word for three in threes for word in _shuffle(three, generators[2])),
        " ".join(word for three in _shuffle(threes, generators[3]) for word in three),
    )


def normalize_caption(caption: str) -> str:
    """Return a caption as the benchmark shows it to models: in lower case, without most marks, thirty words at most.

    True captions and perturbed ones alike, so that no mark gives the true one away. Commas and hyphens stay.
    """
    text = _SPACES.sub(" ", _MARKS.sub(" ", caption.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_MOST_WORDS])


def _others(tagged: TaggedWords) -> frozenset[str]:
    return frozenset(tag for _, tag in tagged) - _NOUNS - _ADJECTIVES


def _shuffle_tagged(tagged: TaggedWords, among: Sequence[frozenset[str]], generator: np.random.Generator) -> list[str]:
    """Return the words, those with tags of one set shuffled among their places."""
    words = [word for word, _ in tagged]
    for tags in among:
        places = [index for index, (_, tag) in enumerate(tagged) if tag in tags]
        for place, word in zip(places, _shuffle([tagged[place][0] for place in places], generator), strict=True):
            words[place] = word
    return words


def _shuffle(items: Sequence[Item], generator: np.random.Generator) -> list[Item]:
    # Not `Generator.permutation`: its numbers may change with numpy's version.
    return [items[index] for index in np.argsort(generator.random(len(items)), kind="stable")]
