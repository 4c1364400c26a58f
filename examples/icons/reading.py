"""Reads one drawing per name from each set, with the set's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from examples.icons.names import clean_name
from examples.icons.sets import EMOJI_SETS
from examples.quickstart.emoji.concepts import Concept, join_names, read_concepts
from examples.quickstart.emoji.sources import DrawingSet, Style, read_drawings
from examples.quickstart.emoji.splits import chance

_NO_KINDS = frozenset(("others", "other", "emoji"))
# Categories of trade marks, in the sets that have them.
_MARKS = frozenset(("brand", "brand / logo", "logos", "social media"))


@attrs.frozen(kw_only=True)
class Icon:
    """One drawing of an icon set.

    Args:
        set_name: name of the icon set.
        source: name of the icon in the set.
        name: the depicted thing.
        keywords: search terms: the words of the icon's names, and categories.
        kind: category in the set; empty if there is no category.
        svg: the SVG document.
    """

    set_name: str
    source: str
    name: str
    keywords: tuple[str, ...]
    kind: str
    svg: str = attrs.field(repr=False)

    @property
    def key(self) -> str:
        """The drawing's key in shards."""
        return f"{self.set_name}-{self.source}"


@attrs.frozen(kw_only=True)
class IconSet:
    """The icons of one set.

    Args:
        style: style of the set.
        icons: one drawing per name.
        num_drawings: number of drawings before cleaning names and dropping variants.
        licence: licence according to the package.
        variants: all drawings by name, the drawing of `icons` first.
    """

    style: Style
    icons: tuple[Icon, ...]
    num_drawings: int
    licence: Mapping[str, Any]
    variants: Mapping[str, tuple[Icon, ...]] = attrs.field(factory=dict, repr=False)


def read_sets(modules: Path, styles: Iterable[Style], *, max_words: int, seed: int) -> list[IconSet]:
    """Return one drawing per name from each set.

    Args:
        modules: the `node_modules` folder with the packages.
        styles: icon sets to read.
        max_words: maximum number of words in a name.
        seed: seed of the choice among variants of a drawing.
    """
    drawn = [read_drawings(modules, style) for style in styles]
    concepts = read_concepts(modules)
    names = join_names(concepts, [one for one in drawn if one.style in EMOJI_SETS])
    found = []
    for one in drawn:
        if one.style in EMOJI_SETS:
            icons = _emoji(one, concepts, names)
        else:
            icons = _icons(one, _categories(modules / one.style.package), max_words=max_words)
        variants: dict[str, tuple[Icon, ...]] = {}
        for icon in sorted(icons, key=lambda icon: chance(seed, "variant", icon.key)):
            variants[icon.name] = (*variants.get(icon.name, ()), icon)
        found.append(
            IconSet(
                style=one.style,
                icons=tuple(variants[name][0] for name in sorted(variants)),
                num_drawings=len(one.drawings),
                licence=one.licence,
                variants=variants,
            )
        )
    return found


def _icons(drawn: DrawingSet, categories: Mapping[str, tuple[str, ...]], *, max_words: int) -> Iterable[Icon]:
    """Yield the drawings that have a name; other names of a drawing in the set become keywords."""
    named: dict[str, dict[str, str]] = {}
    for drawing in drawn.drawings:
        name = clean_name(drawing.name, max_words=max_words)
        if name is not None and _MARKS.isdisjoint(categories.get(drawing.name, ())):
            named.setdefault(drawing.svg, {}).setdefault(name, drawing.name)
    for svg, names in named.items():
        (name, source), *others = names.items()
        kinds = tuple(kind for kind in categories.get(source, ()) if kind not in _NO_KINDS)
        yield Icon(
            set_name=drawn.style.name,
            source=source,
            name=name,
            keywords=tuple(dict.fromkeys((*name.split(), *(other for other, _ in others), *kinds))),
            kind=kinds[0] if kinds else "",
            svg=svg,
        )


def _emoji(drawn: DrawingSet, concepts: Mapping[str, Concept], names: Mapping[str, str]) -> Iterable[Icon]:
    for drawing in drawn.drawings:
        concept = concepts.get(drawing.code or names.get(drawing.name, ""))
        if concept is not None:
            yield Icon(
                set_name=drawn.style.name,
                source=drawing.name,
                name=concept.label.lower(),
                keywords=tuple(dict.fromkeys((*concept.label.lower().split(), *concept.tags))),
                kind=concept.group,
                svg=drawing.svg,
            )


def _categories(package: Path) -> dict[str, tuple[str, ...]]:
    """Return the lower-case categories of every icon that has categories."""
    path = package / "metadata.json"
    listed = json.loads(path.read_text(encoding="utf-8")).get("categories", {}) if path.exists() else {}
    found: dict[str, tuple[str, ...]] = {}
    for category, names in listed.items():
        for name in names:
            found[name] = (*found.get(name, ()), category.lower())
    return found
