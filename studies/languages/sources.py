"""Reads the names of emoji and of things on maps in many languages, from two npm packages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from examples.quickstart.emoji.sources import Style

CLDR = Style(name="cldr", package="cldr-annotations-full", title="annotations of emoji, CLDR")
OSM = Style(name="osm", package="@openstreetmap/id-tagging-schema", title="presets of OpenStreetMap's editor iD")
# Packages with licence and author.
SOURCES = {CLDR: ("Unicode-3.0", "© 2004-2026 Unicode, Inc."), OSM: ("ISC", "© iD Contributors")}
ENGLISH = "en"
# Language codes in the packages.
_CLDR_CODES = {"nb": "no"}
_OSM_CODES = {"nb": "no", "zh": "zh-CN", "pt": "pt-BR"}
# Two keywords translate each other if the emoji that have them are mostly the same, by Dice's coefficient.
_LEAST_OVERLAP, _LEAST_SHARED = 0.6, 2


@attrs.frozen(kw_only=True)
class Phrase:
    """A text in a language.

    Args:
        text: text in the package.
        english: English translation, in lower case without punctuation.
        is_name: whether the text is the name of a thing rather than a keyword or a form option.
    """

    text: str
    english: str
    is_name: bool


def plain(text: str) -> str:
    """Return an English text in the form of icon names: lower case, without punctuation.

    Example:
        >>> plain("T-Shirt & Jeans")
        't shirt jeans'
    """
    return re.sub(r"[^a-z0-9]+", " ", re.sub(r"['’]", "", text.lower())).strip()


def read_phrases(modules: Path, language: str) -> Iterator[Phrase]:
    """Yield the packages' phrases in a language, which may be in only one of the packages.

    Args:
        modules: the `node_modules` folder with the packages.
        language: language code, such as `de`.
    """
    own, english = _annotations(modules, language), _annotations(modules, ENGLISH)
    for character, entry in own.items():
        if "tts" in entry and "tts" in english.get(character, ()):
            yield _phrase(entry["tts"][0], english[character]["tts"][0], is_name=True)
    for keyword, translation in aligned_keywords(own, english):
        yield _phrase(keyword, translation, is_name=False)
    yield from _presets(modules, language)


def aligned_keywords(
    own: Mapping[str, Mapping[str, Any]], english: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield all pairs of keywords and English keywords of the same emoji, since the annotations do not align keywords.

    Args:
        own: annotations of a language, by emoji.
        english: those in English.
    """
    theirs = _emoji_by_keyword(english)
    for keyword, emoji in _emoji_by_keyword(own).items():
        shared = Counter(other for one in emoji for other in english.get(one, {}).get("default", ()))
        dice = {other: 2 * count / (len(emoji) + len(theirs[other])) for other, count in shared.items()}
        best = max(dice, key=lambda other: (dice[other], other), default=None)
        if best is not None and dice[best] >= _LEAST_OVERLAP and shared[best] >= _LEAST_SHARED:
            yield keyword, best


def _emoji_by_keyword(annotations: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for character, entry in annotations.items():
        for keyword in entry.get("default", ()):
            found.setdefault(keyword, set()).add(character)
    return found


def _presets(modules: Path, language: str) -> Iterator[Phrase]:
    """Yield the names of things on maps, and the words in the forms about these things."""
    own, english = (_translations(modules, code) for code in (language, ENGLISH))
    for key, preset in own.get("presets", {}).items():
        name = english["presets"].get(key, {}).get("name")
        for text in (preset.get("name", ""), *preset.get("aliases", "").split("\n")):
            if name and text.strip():
                yield _phrase(text, name, is_name=True)
    for key, field in own.get("fields", {}).items():
        known = english["fields"].get(key, {})
        options = known.get("options", {})
        pairs = [(field.get("label"), known.get("label"))]
        pairs += [(_title(text), _title(options.get(name))) for name, text in field.get("options", {}).items()]
        yield from (_phrase(text, meant, is_name=False) for text, meant in pairs if text and meant)


def _phrase(text: str, english: str, *, is_name: bool) -> Phrase:
    return Phrase(text=" ".join(text.split()), english=plain(english), is_name=is_name)


def _title(option: Any) -> str:
    return str(option.get("title", "")) if isinstance(option, Mapping) else option or ""


def _annotations(modules: Path, language: str) -> Mapping[str, Mapping[str, Any]]:
    code = _CLDR_CODES.get(language, language)
    path = modules / CLDR.package / "annotations" / code / "annotations.json"
    found: Mapping[str, Mapping[str, Any]] = _read(path).get("annotations", {}).get("annotations", {})
    return found


def _translations(modules: Path, language: str) -> Mapping[str, Any]:
    code = _OSM_CODES.get(language, language)
    path = modules / OSM.package / "dist" / "translations" / f"{code}.json"
    found: Mapping[str, Any] = _read(path).get(code, {}).get("presets", {})
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def names_of(phrases: Iterable[Phrase]) -> dict[str, str]:
    """Return the first translation of each English name."""
    found: dict[str, str] = {}
    for phrase in phrases:
        if phrase.is_name:
            found.setdefault(phrase.english, phrase.text)
    return found
