"""Distinguishes local paths from URLs, and makes untrusted text safe to print."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
import urllib.parse
from pathlib import Path

# Joiners of letters and emoji, which are kept; all other invisible characters are escaped.
_JOINERS = "\u200c\u200d"
_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,29})://(?P<rest>(?:[^\s'\"<>|\\^`{}]*[^\s'\"<>|\\^`{}.,:;)\]])?)"
)


def printable(text: object, *, limit: int = 300) -> str:
    r"""Return a text as a single line that is safe to print to a terminal, log or table.

    Control characters, line breaks, tabs, bidirectional marks and unpaired surrogates become escapes such as `\n` or
    `\x1b`, so that a name cannot move the cursor, add a row or disguise itself.

    Args:
        text: any object; `str` converts the object.
        limit: maximum number of characters of `text`; the function truncates a longer text and appends the length.
    """
    whole = str(text)
    kept = whole if len(whole) <= limit else whole[:limit]
    shown = kept if kept.isascii() and kept.isprintable() else "".join(map(_shown, kept))
    return shown if len(whole) <= limit else f"{shown}... ({len(whole):,} characters)"


def without_secrets(text: object) -> str:
    """Return a text without the secrets of URLs such as `https://user:password@host/key?signature=...`.

    The function removes the user, password, query and fragment from every URL, and marks a removed query by `?...`.

    Args:
        text: a URL, a text with URLs, or any object; `str` converts the object.
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


AnyPath = str | os.PathLike[str]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WEB = ("http", "https")


def is_remote(path: AnyPath) -> bool:
    """Return whether `path` is a URL, such as `s3://bucket/key`; `file://` URLs are local."""
    return _scheme(path) not in ("", "file")


def is_web(path: AnyPath) -> bool:
    """Return whether `path` is a URL of a web server, which cannot list files."""
    return _scheme(path) in _WEB


def local_path(path: AnyPath) -> Path:
    """Return a local path or `file://` URL as a `Path`."""
    text = os.fspath(path)
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path) if _scheme(text) == "file" else text)


def absolute_path(path: AnyPath) -> str:
    """Return the absolute path of a local path or `file://` URL, without following links."""
    return os.path.abspath(local_path(path))  # noqa: PTH100 - links stay links


def join(base: AnyPath, name: str) -> str:
    """Return the path of a file below a directory."""
    return f"{os.fspath(base).rstrip('/')}/{name.lstrip('/')}" if is_remote(base) else str(local_path(base) / name)


def file_name(path: AnyPath) -> str:
    """Return the last part of a path, without the query of a web URL."""
    text = os.fspath(path)
    if is_web(text):
        text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    return posixpath.basename(text)


def is_same(one: AnyPath, other: AnyPath) -> bool:
    """Return whether two paths are equal after resolving links, or two URLs are equal strings; files may be missing."""
    if is_remote(one) or is_remote(other):
        return os.fspath(one) == os.fspath(other)
    return local_path(one).resolve() == local_path(other).resolve()


def _scheme(path: AnyPath) -> str:
    found = _SCHEME.match(os.fspath(path))
    return found[1].lower() if found else ""
