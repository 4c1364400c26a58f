"""Icon packages of our own in the shape of the published ones."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from examples.icons import IconDataSpec
from examples.icons.sets import ICON_SETS
from examples.quickstart.emoji.sources import locked
from tests.examples.quickstart.drawings import COLOURS, SHAPES, icon_body, write_json, write_packages

LABELS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

FEW = IconDataSpec(
    sets=("bi", "carbon", "iconoir", "lucide", "noto"),
    image_size=32,
    name_fraction=0.2,
    picture_fraction=0.9,
    duplicate_rms=0.01,
    num_processes=1,
)
"""Of five of these sets, with some drawings in every part."""


def write_icon_packages(modules: Path, chosen: Collection[str]) -> Path:
    """Write icon sets of sixteen names, with variants, an alias, a trade mark, and categories; and the emoji sets."""
    write_packages(modules)
    for number, style in enumerate(one for one in ICON_SETS if one.name in chosen):
        icons = {label.replace(" ", "-"): {"body": icon_body(label, number, 24)} for label in LABELS}
        icons["red-circle-outline"] = {"body": '<circle cx="12" cy="12" r="9" fill="none" stroke="#d22"/>'}
        icons["brand-something"] = {"body": icon_body("red bar", number, 24)}
        icons["shape-of-a-mark"] = {"body": icon_body("red bar", number, 20)}
        write_json(modules / style.package, {
            "icons.json": {"icons": icons, "aliases": {"disc": {"parent": "blue-circle"}}, "width": 24, "height": 24},
            "chars.json": {},
            "info.json": {"author": {"name": "Somebody"}, "license": {"title": "ISC", "spdx": "ISC"}},
            "package.json": {"version": locked()[style.package]["version"]},
            "metadata.json": {"categories": {"Geometry": [*icons][:16], "Logos": ["shape-of-a-mark"], "Other": ["x"]}},
        })  # fmt: skip
    return modules
