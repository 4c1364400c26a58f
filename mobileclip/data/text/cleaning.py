"""Cleans texts as CLIP and open_clip do: mojibake is repaired, HTML entities are unescaped."""

from __future__ import annotations

import html
import re

# Where repairing can change something. An entity needs a name or a number behind its ampersand. Mojibake is two odd
# characters side by side: an accented letter, dash or quote with ASCII on both sides is none (all but the few letters
# that are suspect alone, which are left out here), nor are runs in scripts that no Western encoding holds.
_ENTITY = re.compile(r"&[#0-9A-Za-z]")
_ALONE = "ÀÁÄ-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ–—‘’“”"
_RUNS = "А-яぁ-んァ-ヴー、。一-\u9fff가-힣\U0001f300-\U0001faff"
_SUSPECT = re.compile(f"[^ -~{_ALONE}{_RUNS}]|(?<![ -~])(?<!^)[{_ALONE}]|[{_ALONE}](?![ -~]|$)")
_STRAIGHT_QUOTES = (("‘", "'"), ("’", "'"), ("“", '"'), ("”", '"'))


def clean(text: str) -> str:
    """Return a text as CLIP's byte pairs take it: repaired, in lower case."""
    return repaired(text).lower()


def repaired(text: str) -> str:
    """Return the text repaired by ftfy, with HTML entities unescaped (twice).

    Repairing costs more than all the rest, so it is done only where it could change something.
    """
    if not text.isprintable() or ("&" in text and _ENTITY.search(text)):
        return _repair(text)
    if not text.isascii():
        if _SUSPECT.search(text):
            return _repair(text)
        for curly, straight in _STRAIGHT_QUOTES:
            text = text.replace(curly, straight)
    return text


def _repair(text: str) -> str:
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))
