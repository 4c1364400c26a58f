"""A folder of images whose folders are their classes, as a source: names of classes become captions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.images.files import list_folder
from mobileclip.data.skips import Skip
from mobileclip.datasets.sources.base import TEMPLATES, Source, numbered_name, sources
from mobileclip.datasets.sources.folder import FolderItem, FolderSource, FolderUnit
from mobileclip.strict import parse_json, repeated, split_lines, strict

NAMES = ("classes.json", "classes.txt")

_MAX_NAMES_BYTES = 2**26


def _templates(values: Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _have_a_place(_: object, attribute: attrs.Attribute[Any], values: tuple[str, ...]) -> None:
    if not values:
        raise ValueError(f"{attribute.name} is empty; give at least one, such as 'a photo of a {{}}.'")
    for value in values:
        if "{}" not in value:
            raise ValueError(f"template {value!r} has no {{}} where the name of the class goes")


@sources.register("class_folder")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ClassFolderSource(Source):
    """Images of classes, `PATH/CLASS/NAME.jpg` and deeper, as image classification keeps them.

    A sample's captions are the templates with the name of its class; its metadata has the name as `label`. A class is
    called like its folder, with spaces for underscores, or as a table beside the folders says: `classes.json`
    (`{"n01440764": "tench"}`) or `classes.txt` (a line per class: folder, tab, name). What is hidden or no image is
    left out and counted, as `image_files` says.

    Images come in an order that mixes the classes: shards of one class each would make batches of one class each.

    Args:
        path: the folder, or its URL on a store that can be listed.
        templates: captions with one `{}` where the name of the class goes.
        samples_per_shard: images that become one shard.

    Raises:
        ValueError: if a template has no `{}`, there is none, or a number is out of its range.
    """

    path: str = attrs.field(converter=os.fspath)
    templates: tuple[str, ...] = attrs.field(default=TEMPLATES, converter=_templates, validator=_have_a_place)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))

    def units(self) -> tuple[FolderUnit, ...]:
        """Return the images in parts; the folder is listed. Images in no class's folder are skipped and named.

        Raises:
            ValueError: if it is no folder, cannot be listed, holds no images in folders, or the table of names is wrong
                or names a folder that is not there.
        """
        items, stray, digest, left_out = self._items()
        names = self._names({_folder(item) for item in items})
        rows = {folder: self._row(folder, name) for folder, name in names.items()}
        digest = blake2b(b"\0".join((digest.encode(), *rows.values())), digest_size=16).hexdigest()
        mixed = sorted(items, key=lambda item: blake2b(item.key.encode(), digest_size=16).digest())
        parts = [
            mixed[start : start + self.samples_per_shard] for start in range(0, len(mixed), self.samples_per_shard)
        ]
        return tuple(
            FolderUnit(
                name=numbered_name(index),
                path=self.path,
                items=tuple(FolderItem(key=item.key, image=item.image, rows=(rows[_folder(item)],)) for item in part),
                stray=() if index else tuple(stray),
                left_out=() if index else left_out,
                # Every image's place depends on all the others, so every part changes with any of them.
                digest=digest,
            )
            for index, part in enumerate(parts)
        )

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, sorted; the folder is listed.

        Raises:
            ValueError: see `units`.
        """
        items, *_ = self._items()
        return tuple(sorted(self._names({_folder(item) for item in items}).values()))

    def _items(self) -> tuple[list[FolderItem], list[Skip], str, tuple[Skip, ...]]:
        """Return the images that belong to a class, those that belong to none, a digest of all, and other files."""
        units = FolderSource(path=self.path).units()
        items = [item for unit in units for item in unit.items]
        classed = [item for item in items if "/" in item.image]
        if not classed:
            raise ValueError(
                f"the images of {self.path} are in no folders of their own; expected a folder for every class, "
                f"{storage.join(self.path, 'CLASS/NAME.jpg')}"
            )
        stray = [
            Skip(reason="no_class", key=item.image, shard=self.path, detail=f"{item.image} is in no class's folder")
            for item in items
            if "/" not in item.image
        ]
        left_out = list_folder(self.path).left_out(NAMES)
        return classed, stray, "".join(unit.digest for unit in units), left_out

    def _names(self, folders: set[str]) -> dict[str, str]:
        """Return the names of the classes by their folders, in the order of the folders."""
        names = {folder: folder.replace("_", " ").strip() for folder in sorted(folders)}
        for table in NAMES:
            place = storage.join(self.path, table)
            if storage.exists(place):
                given = _parsed(place, storage.read_bytes(place, limit=_MAX_NAMES_BYTES))
                unknown = sorted(given.keys() - names.keys())
                if unknown:
                    raise ValueError(f"{place} names {unknown[0]!r}, which is no folder with images in {self.path}")
                names |= given
                break
        folder_of: dict[str, str] = {}
        for folder, name in names.items():
            if name in folder_of:
                raise ValueError(f"the folders {folder_of[name]!r} and {folder!r} are both called {name!r}; rename one")
            folder_of[name] = folder
        return names

    def _row(self, folder: str, name: str) -> bytes:
        captions = [template.replace("{}", name) for template in self.templates]
        return json.dumps({"captions": captions, "label": name, "class": folder}).encode()


def _folder(item: FolderItem) -> str:
    return item.image.partition("/")[0]


def _rows(text: str) -> dict[str, str]:
    rows = [line.split("\t") for line in split_lines(text) if line.strip()]
    if twice := repeated(folder for folder, *_ in rows):
        raise ValueError(f"the folder {twice[0][:80]!r} is there twice")
    return dict(rows)


def _parsed(place: str, content: bytes) -> dict[str, str]:
    """Return the names in a table by their folders."""
    try:
        text = content.decode("utf-8-sig")
        names = parse_json(text, max_characters=_MAX_NAMES_BYTES) if place.endswith(".json") else _rows(text)
    except ValueError as error:
        raise ValueError(
            f"{place} cannot be read ({error}); expected a line for every class: its folder, a tab, its name"
            if place.endswith(".txt")
            else f"{place} is not JSON in UTF-8: {error}"
        ) from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise ValueError(f"{place} must map the folders of classes to their names, texts that are not blank")
    return {str(folder): name.strip() for folder, name in names.items()}
