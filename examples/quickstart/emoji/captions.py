"""Captions like those that people and a captioner write for a drawing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from examples.quickstart.emoji.concepts import Concept
from examples.quickstart.emoji.rendering import Rendering
from examples.quickstart.emoji.splits import chance

NUM_TAGS = 4
MAX_KEYWORDS = 4
# From this ratio of sides on, captions call a drawing wide or tall.
_WIDE = 1.4


def real_captions(concept: Concept) -> tuple[str, ...]:
    """Return the texts of emojibase's editors: the name, the name with keywords, and the name in a sentence.

    The words are the same for every vendor's drawing of the concept, like alternative texts on the web.
    """
    keywords = ", ".join((concept.label, *concept.tags[:NUM_TAGS]))
    return tuple(dict.fromkeys((concept.label, keywords, f"an emoji of {with_article(concept.label)}")))


def keyword_caption(concept: Concept, *, key: str, seed: int) -> str:
    """Return a noisy caption: one to four keywords of a concept, or of its kind if the concept has no keywords.

    Args:
        concept: depicted concept.
        key: key of the image; images of the same concept have different captions.
        seed: seed of the choice.
    """
    words = [word for word in concept.keywords if re.search(r"\w", word)]
    return chosen_keywords(words or [concept.group, concept.subgroup], key=key, seed=seed)


def chosen_keywords(words: Sequence[str], *, key: str, seed: int) -> str:
    """Return one to four words in random order, like the text of a person who searches for an image.

    Args:
        words: words to choose from.
        key: key of the image.
        seed: seed of the choice, which also depends on the key.
    """
    ordered = sorted(words, key=lambda word: chance(seed, "keyword", key, word))
    return ", ".join(ordered[: 1 + int(chance(seed, "number of keywords", key) * MAX_KEYWORDS)])


def synthetic_captions(concept: Concept, rendering: Rendering) -> tuple[str, ...]:
    """Return captions like a captioner's, composed of the concept's data and of measurements of the image.

    Two captions describe the image (its colours and shape, with and without the name), and two describe the concept
    (its kind and its meaning).
    """
    colours = listed(rendering.colours)
    shape = "wide " if rendering.aspect > _WIDE else "tall " if rendering.aspect < 1 / _WIDE else ""
    kind = f"{concept.group}, {concept.subgroup}"
    captions = [
        f"{with_article(f'{shape}drawing')} of {with_article(concept.label)} in {colours} on a white background",
        f"something from {kind}, drawn in {colours}",
        f"an illustration of {with_article(concept.label)}, from {kind}",
    ]
    if concept.tags:
        captions.append(f"a cartoon about {listed(concept.tags[:3])}, showing {with_article(concept.label)}")
    return tuple(captions)


def with_article(words: str) -> str:
    """Return a phrase with its indefinite article if the phrase can name a single thing."""
    first = words.split(maxsplit=1)[0].lower()
    if first.startswith(("flag", "keycap", "two", "three", "six", "men", "women", "people")) or first.endswith("s"):
        return words
    return f"{'an' if first[0] in 'aeiou' else 'a'} {words}"


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: `red, green and blue`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
