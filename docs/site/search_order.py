"""What the site's search shows first: guides before reference."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

# What newcomers search for, and the page that answers.
ANSWERS = {
    "install": "install.html",
    "preprocess": "using.html",
    "onnx": "export.html",
    "multilingual": "languages.html",
    "faq": "troubleshooting.html",
}
# How much a page counts, by how its path begins; what is not here counts once.
_BOOSTS = {page.removesuffix("html"): 3.0 for page in ANSWERS.values()} | {
    **dict.fromkeys(("api/", "changelog", "contributing", "finding", "flags"), 0.1),
    **dict.fromkeys(("models/", "targets", "examples"), 0.3),
}
# The weights of the site's search, and the constants of BM25 in lunr.
_FIELDS = {"title": 1e3, "text": 1.0}
_SATURATION, _LENGTH = 1.2, 0.75


def search_settings(page: str) -> dict[str, Any]:
    """Return what a page's metadata say to the search.

    Args:
        page: its path below `docs/`.
    """
    return {"boost": next((boost for start, boost in _BOOSTS.items() if page.startswith(start)), 1.0)}


def first_page(entries: Iterable[Mapping[str, Any]], word: str) -> str:
    """Return the page that a search for one word shows first, as lunr ranks: BM25 of titles and texts.

    Args:
        entries: `docs` of the site's search index.
        word: in lower case; longer words that begin with it are found too.
    """
    entries = [*entries]
    scores = [0.0] * len(entries)
    for field, weight in _FIELDS.items():
        words = [re.findall(r"\w+", re.sub(r"<[^>]*>", " ", entry[field]).lower()) for entry in entries]
        mean = sum(map(len, words)) / len(words)
        counts = [sum(one.startswith(word) for one in found) for found in words]
        having = sum(map(bool, counts))
        rarity = math.log(1 + abs((len(entries) - having + 0.5) / (having + 0.5)))
        for index, (found, count) in enumerate(zip(words, counts, strict=True)):
            length = _SATURATION * (1 - _LENGTH + _LENGTH * len(found) / mean)
            boost = entries[index].get("boost", 1.0)
            scores[index] += weight * boost * rarity * count * (1 + _SATURATION) / (count + length)
    best = max(range(len(entries)), key=scores.__getitem__)
    return str(entries[best]["location"]).partition("#")[0]


def require_answers(entries: Iterable[Mapping[str, Any]]) -> None:
    """Make sure that what newcomers search for leads to the page that answers.

    Args:
        entries: `docs` of the site's search index.

    Raises:
        ValueError: if another page comes first.
    """
    entries = [*entries]
    for word, page in ANSWERS.items():
        found = first_page(entries, word)
        if found != page:
            raise ValueError(
                f"a search for {word!r} finds {found} first, expected {page}; give that page a heading with the word"
            )
