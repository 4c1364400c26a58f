"""Text that came with data, made safe to show: no control characters, no secrets, no more of it than a person reads."""

from __future__ import annotations

import re
import unicodedata

# What joins letters and emoji into one; every other invisible character is shown as an escape.
_JOINERS = "\u200c\u200d"
_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,29})://(?P<rest>(?:[^\s'\"<>|\\^`{}]*[^\s'\"<>|\\^`{}.,:;)\]])?)"
)


def printable(text: object, *, limit: int = 300) -> str:
    r"""Return a text as one line that a terminal, a log or a table can show.

    Control characters, line breaks, tabs, marks that turn the direction of writing and halves of characters become
    escapes such as `\n` or `\x1b`, so that a name cannot move the cursor, add a row or hide what it is.

    Args:
        text: any object; its `str` is shown.
        limit: number of characters that are kept of a longer text; what was cut is said behind them.
    """
    whole = str(text)
    kept = whole if len(whole) <= limit else whole[:limit]
    shown = kept if kept.isascii() and kept.isprintable() else "".join(map(_shown, kept))
    return shown if len(whole) <= limit else f"{shown}... ({len(whole):,} characters)"


def without_secrets(text: object) -> str:
    """Return a text whose URLs, such as `https://user:password@host/key?signature=...`, tell no secret.

    User, password, query and fragment are left out of every URL in it; `?...` stands where a query was.

    Args:
        text: a URL, or a text with URLs in it; its `str` is taken.
    """
    return _ADDRESS.sub(_bare, str(text))


def _shown(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def _bare(match: re.Match[str]) -> str:
    place, question, query = match["rest"].partition("#")[0].partition("?")
    host, slash, path = place.partition("/")
    return f"{match['scheme']}://{host.rpartition('@')[2]}{slash}{path}{'?...' if query else question}"
