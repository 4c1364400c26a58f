"""The concepts of the drawings: names, keywords and kinds from emojibase, and families of variants."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from examples.quickstart.emoji.sources import NAMES_PACKAGE, DrawingSet, canonical_code, slug

# People in emoji come as person, man and woman, with almost the same drawing and words.
_PERSON, _OLDER_PERSON, _CHILD, _FAMILY = "1f9d1", "1f9d3", "1f9d2", "1f46a"
_NEUTRAL = {
    "1f468": _PERSON,
    "1f469": _PERSON,
    "1f474": _OLDER_PERSON,
    "1f475": _OLDER_PERSON,
    "1f466": _CHILD,
    "1f467": _CHILD,
    "1f478": "1fac5",
    "1f934": "1fac5",
}
_PEOPLE = {_PERSON, _OLDER_PERSON, _CHILD, _FAMILY}
_GENDER_POINTS = {"2640", "2642"}
_DIRECTION_POINTS = {"27a1"}
_GENDER_WORDS = re.compile(r"\b(?:(?:wo)?m[ae]n|person|people|deaf|girl|boy|child|older|old|santa|mrs\.?|mx)\b")
_DIRECTIONS = re.compile(r"\b(?:facing )?(?:right|left)\b")


@attrs.frozen(kw_only=True)
class Concept:
    """One thing that emoji depict.

    Args:
        code: canonical code points, which identify the concept.
        label: name of the concept, as a phrase.
        tags: keywords, without the words of the label itself.
        keywords: all keywords, including words of the label.
        group: kind, such as `animals & nature`.
        subgroup: finer kind, such as `birds`.
        family: code that all variants of the concept share (gender, direction, composition of a family).
    """

    code: str
    label: str
    tags: tuple[str, ...]
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    family: str


def read_concepts(modules: Path) -> dict[str, Concept]:
    """Return every concept of emojibase's English data by code, without components such as skin tones.

    Args:
        modules: the `node_modules` folder that `download` returned.
    """
    english = modules / NAMES_PACKAGE / "en"
    messages = json.loads((english / "messages.json").read_text(encoding="utf-8"))
    entries = json.loads((english / "data.json").read_text(encoding="utf-8"))
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    kept = [entry for entry in entries if "group" in entry and groups[entry["group"]] != "components"]
    families = _families({canonical_code(entry["hexcode"]): entry["label"] for entry in kept})
    concepts = {}
    for entry in kept:
        code = canonical_code(entry["hexcode"])
        label = phrase(entry["label"])
        words = set(label.lower().split())
        keywords = tuple(map(str, entry.get("tags", ())))
        concepts[code] = Concept(
            code=code,
            label=label,
            tags=tuple(keyword for keyword in keywords if keyword.lower() not in words),
            keywords=keywords,
            group=groups[entry["group"]],
            subgroup=subgroups[entry["subgroup"]],
            family=families[code],
        )
    labels = [concept.label for concept in concepts.values()]
    assert len(set(labels)) == len(labels), "labels name classes, so they must differ"
    return concepts


def phrase(label: str) -> str:
    """Return an emojibase label as a phrase: `flag: Chad` becomes the flag of Chad."""
    kind, colon, rest = label.partition(": ")
    if not colon:
        return label
    if kind == "flag":
        return f"flag of {rest}"
    if rest == "bald":
        return f"bald {kind}"
    if kind == "keycap" or rest.startswith("facing "):
        return f"{kind} {rest}"
    *members, last = rest.split(", ")
    listed = f"{', '.join(members)} and {last}" if members else last
    return f"{kind} of {listed}" if kind in {"family", "kiss", "couple with heart"} else f"{kind} with {listed}"


def _families(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the family of every code; concepts in a family share code points, or words apart from gender."""
    parent = {code: code for code in labels}

    def root(code: str) -> str:
        while parent[code] != code:
            code = parent[code]
        return code

    seen: dict[str, str] = {}
    for code, label in labels.items():
        for key in (f"code {_code_skeleton(code)}", f"label {_label_skeleton(label)}"):
            if key in seen:
                first, second = sorted((root(seen[key]), root(code)))
                parent[second] = first
            seen.setdefault(key, code)
    return {code: root(code) for code in labels}


def _code_skeleton(code: str) -> str:
    points = [point for point in code.split("-") if point not in _GENDER_POINTS | _DIRECTION_POINTS]
    points = [_NEUTRAL.get(point, point) for point in points if point != "200d"]
    # Families and couples differ only by who takes part.
    if points == [_FAMILY] or (len(points) > 1 and _PEOPLE.issuperset(points)):
        return "family"
    return "-".join(point for index, point in enumerate(points) if index == 0 or point not in _PEOPLE)


def _label_skeleton(label: str) -> str:
    plain = label.lower().split(": ")[0] if not label.startswith(("flag", "keycap")) else label.lower()
    stripped = " ".join(_DIRECTIONS.sub(" ", _GENDER_WORDS.sub(" ", plain)).split())
    return stripped or plain


def join_names(concepts: Mapping[str, Concept], sets: Iterable[DrawingSet]) -> dict[str, str]:
    """Return codes by icon name, from the names in sets with code points and from the labels.

    The sets without code points use the same names as the other sets.
    """
    names: dict[str, str] = {}
    for drawing_set in sets:
        for drawing in drawing_set.drawings:
            if drawing.code in concepts:
                names.setdefault(drawing.name, drawing.code)
    for code, concept in concepts.items():
        names.setdefault(slug(concept.label), code)
        if concept.label.startswith("flag of "):
            names.setdefault(slug(f"flag for {concept.label.removeprefix('flag of ')}"), code)
            names.setdefault(slug(f"flag {concept.label.removeprefix('flag of ')}"), code)
    return names
