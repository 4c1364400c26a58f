"""Derives the name of the depicted thing from an icon's file name, by rules."""

from __future__ import annotations

import re

# Words about the style at the end of a name.
_MANNERS = frozenset(
    (
        *("outline", "outlined", "line", "linear", "fill", "filled", "solid", "duotone", "color", "broken"),
        *("thin", "light", "regular", "bold", "round", "rounded", "sharp", "minimalistic", "alt", "variant"),
        *("sm", "small", "lg", "large", "ltr", "rtl"),
    )
)
# Platforms at the start of a name.
_PLATFORMS = frozenset(("ios", "md"))
# Trade marks: a logo does not depict its name, and the set's licence may not cover its distribution.
_MARKS = frozenset(("brand", "brands", "logo", "logos", "social"))


def clean_name(name: str, *, max_words: int) -> str | None:
    """Return a lower-case phrase for the depicted thing, or None if an icon's name does not describe the thing.

    The function leaves out final words about the style (`outline`, `bold`, a size in pixels, a variant number)
    and an initial platform. Trade marks, longer phrases and single characters give None.

    Args:
        name: name in the icon set, words joined by dashes.
        max_words: maximum number of words, since longer phrases more often name a product than a thing.

    Example:
        >>> clean_name("arrow-left-24-filled", max_words=4)
        'arrow left'
        >>> clean_name("brand-github", max_words=4) is None
        True
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    while len(words) > 1 and (words[-1] in _MANNERS or words[-1].isdigit()):
        words.pop()
    if len(words) > 1 and words[0] in _PLATFORMS:
        words = words[1:]
    if not words or len(words) > max_words or not _MARKS.isdisjoint((words[0], words[-1])):
        return None
    phrase = " ".join(words)
    return phrase if re.search(r"[a-z]{2}", phrase) else None


def family(phrase: str) -> str:
    """Return a key that phrases of the same words share, in any order and number: `arrows left`, `left arrow`."""
    return " ".join(sorted({_singular(word) for word in phrase.split()}))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
