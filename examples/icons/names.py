"""From the names that icon sets give their files to what an icon depicts, by rule."""

from __future__ import annotations

import re

# How it is drawn, and not what: at the end of a name.
_MANNERS = frozenset(
    (
        *("outline", "outlined", "line", "linear", "fill", "filled", "solid", "duotone", "color", "broken"),
        *("thin", "light", "regular", "bold", "round", "rounded", "sharp", "minimalistic", "alt", "variant"),
        *("sm", "small", "lg", "large", "ltr", "rtl"),
    )
)
# Whose platform it was drawn for: at the start of a name.
_PLATFORMS = frozenset(("ios", "md"))
# Trade marks: a logo shows nothing that its name says, and may not be given to everyone under the set's licence.
_MARKS = frozenset(("brand", "brands", "logo", "logos", "social"))


def clean_name(name: str, *, max_words: int) -> str | None:
    """Return what an icon depicts as a phrase in lower case, or None where its name does not say it.

    Words at the end that say how it is drawn (`outline`, `bold`, a size in pixels, a number of the variant) and a
    platform at the start are left out. Trade marks, longer phrases and single characters give None.

    Args:
        name: words joined by dashes, as icon sets spell them.
        max_words: longer phrases tell of a product more often than of a thing.

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
    """Return what phrases of the same words share, in any order, one or many: `arrows left` and `left arrow`."""
    return " ".join(sorted({_singular(word) for word in phrase.split()}))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
