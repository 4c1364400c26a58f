"""A handful of drawings of our own in the shape of the icon packages, and names in the shape of emojibase."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from examples.quickstart.emoji.dataset import EmojiDataSpec
from examples.quickstart.emoji.sources import NAMES_PACKAGE, STYLES, locked

SPEC = EmojiDataSpec(image_size=48, concept_fraction=0.2, rendering_fraction=0.6, samples_per_shard=20, num_processes=1)
SHAPES = {
    "circle": '<circle cx="{c}" cy="{c}" r="{r}" fill="{f}"/>',
    "square": '<path d="M{a} {a}H{b}V{b}H{a}z" fill="{f}"/>',
    "triangle": '<path d="M{c} {a}L{b} {b}L{a} {b}z" fill="{f}"/>',
    "bar": '<path d="M{a} {q}H{b}V{p}H{a}z" fill="{f}"/>',
}
COLOURS = {"red": "#d22", "green": "#2a3", "blue": "#24d", "yellow": "#fd2"}
HAT = '<path d="M{a} {a}H{b}" stroke="#222" stroke-width="{w}"/>'


def concept_entries() -> list[dict[str, object]]:
    """Sixteen coloured shapes, three wizards of one family, and a skin tone, which is no concept."""
    entries: list[dict[str, object]] = [{"label": "dark skin tone", "hexcode": "1F3FF", "group": 2, "subgroup": 32}]
    for index, (colour, shape) in enumerate(product(COLOURS, SHAPES)):
        shown = {"label": f"{colour} {shape}", "hexcode": f"{0x1F600 + index:X}", "group": 8, "subgroup": 96}
        entries.append({**shown, "tags": [shape, colour, "geometry", f"thing {index}"]})
    people = {"mage": "1F9D9", "man mage": "1F9D9-200D-2642-FE0F", "woman mage": "1F9D9-200D-2640-FE0F"}
    for label, code in people.items():
        entries.append({"label": label, "hexcode": code, "tags": ["wizard"], "group": 1, "subgroup": 26})
    return entries


MESSAGES = {
    "groups": {1: "people & body", 2: "components", 8: "symbols"},
    "subgroups": {26: "fantasy", 32: "skin tones", 96: "shapes & colors"},
}


def icon_body(label: str, style: int, size: int) -> str:
    """Return a drawing that differs from style to style in size, place and shade."""
    inset = size * (0.06 + 0.05 * style)
    values = {"a": inset, "b": size - inset, "c": size / 2 + (style - 2) * size * 0.04, "r": size / 2 - inset}
    values |= {"q": size * 0.4, "p": size * 0.6, "w": size * 0.2}
    colour, _, shape = label.partition(" ")
    if colour in COLOURS:
        return SHAPES[shape].format(**values, f=COLOURS[colour])
    hats = HAT.format(**values) * (1 + ("man" in label) + ("woman" in label))
    return hats + SHAPES["triangle"].format(**values, f="#639")


def write_json(folder: Path, files: Mapping[str, object]) -> None:
    """Write JSON files by name into a new folder."""
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))


def write_packages(modules: Path) -> Path:
    """Write what npm would have installed: the old Noto set without code points, the Fluent one with an alias."""
    entries = concept_entries()
    messages = {
        kind: [{"order": order, "message": message} for order, message in names.items()]
        for kind, names in MESSAGES.items()
    }
    write_json(modules / NAMES_PACKAGE, {"package.json": {"version": locked()[NAMES_PACKAGE]["version"]}})
    write_json(modules / NAMES_PACKAGE / "en", {"data.json": entries, "messages.json": messages})
    names = {str(entry["label"]).replace(" ", "-"): entry for entry in entries if entry["group"] != 2}
    chars = {str(entry["hexcode"]).lower(): name for name, entry in names.items()}
    for number, style in enumerate(STYLES):
        size = (128, 36, 128, 64, 32, 72)[number]
        icons = {name: {"body": icon_body(str(entry["label"]), number, size)} for name, entry in names.items()}
        icons["secret"] = {"body": icon_body("red circle", number, size), "hidden": True}
        write_json(modules / style.package, {
            "icons.json": {"icons": icons, "aliases": {"wizard": {"parent": "mage"}}, "width": size, "height": size},
            "chars.json": {} if style.name == "noto-v1" else chars,
            "info.json": {"author": {"name": f"Author {number}"}, "license": {"title": "Test", "spdx": "MIT"}},
            "package.json": {"version": locked()[style.package]["version"]},
        })  # fmt: skip
    return modules
