"""Noisy captions: what people searching for a picture type, a few keywords, instead of the picture's name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from examples.quickstart.emoji.concepts import Concept
from examples.quickstart.emoji.sources import NAMES_PACKAGE, canonical_code
from examples.quickstart.emoji.splits import chance

MAX_KEYWORDS = 4


def read_keywords(modules: Path) -> dict[str, tuple[str, ...]]:
    """Return emojibase's keywords by code, all of them: those that are words of the name as well.

    Args:
        modules: the `node_modules` of the emoji data set's download.
    """
    entries = json.loads((modules / NAMES_PACKAGE[0] / "en" / "data.json").read_text(encoding="utf-8"))
    return {canonical_code(entry["hexcode"]): tuple(map(str, entry.get("tags", ()))) for entry in entries}


def keyword_caption(concept: Concept, keywords: Sequence[str], *, key: str, seed: int) -> str:
    """Return one to four keywords of a concept, chosen and ordered by chance: the same for a key and a seed.

    A concept without keywords has its kind instead.

    Args:
        concept: what is depicted.
        keywords: its keywords.
        key: of the picture; pictures of one concept have different captions.
        seed: of the choice.
    """
    words = [word for word in keywords if re.search(r"\w", word)] or [concept.group, concept.subgroup]
    words.sort(key=lambda word: chance(seed, "keyword", key, word))
    count = 1 + int(chance(seed, "number of keywords", key) * MAX_KEYWORDS)
    return ", ".join(words[:count])
