"""Reads folders of images, with a caption file per image, a table of captions, or a folder per class."""

from __future__ import annotations

import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.images.files import FolderFiles, list_folder, printable_name
from mobileclip.data.images.limits import IMAGE_EXTENSIONS, is_image_name
from mobileclip.data.samples.members import json_captions
from mobileclip.data.samples.sample import MAX_KEY_BYTES, ImageTextSample
from mobileclip.data.skips import BadSampleError, Skip, SkipReport, attempt, made_or_skip
from mobileclip.datasets.sources.base import (
    MAX_LINE_BYTES,
    TEMPLATES,
    Record,
    Source,
    Unit,
    key_of_path,
    numbered_name,
    parse_row,
    read_records,
    sources,
)
from mobileclip.datasets.sources.lists import CAPTION_FIELDS
from mobileclip.datasets.sources.tables import text_rows
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import parse_json, repeated, split_lines, strict

TABLES = ("captions.jsonl", "metadata.jsonl")

_SIDECARS = (".txt", ".json")
# Number of characters of a long key to keep before the digest of the full key.
_KEPT_OF_LONG = 200


@attrs.frozen(kw_only=True)
class FolderItem:
    """An image in a folder, with the caption files and table rows for the image.

    Args:
        key: key of the sample.
        image: relative path of the image, with `/` between folders.
        text: relative path of the `.txt` file with one caption per line; None without a file.
        json: relative path of the `.json` file with one object; None without a file.
        rows: table rows for the image, as JSON.
    """

    key: str
    image: str
    text: str | None = None
    json: str | None = None
    rows: tuple[bytes, ...] = ()

    @property
    def folder(self) -> str:
        """First folder in the path of the image: the folder of a class."""
        return self.image.partition("/")[0]


@attrs.frozen(kw_only=True)
class FolderUnit(Unit):
    """A range of the images in a folder.

    Args:
        path: path or URL of the folder.
        items: images of the unit.
        unmatched_skips: skips for table rows without an image, or images outside class folders; empty except in the
            first unit.
        left_out: skips for files that are neither images nor captions; empty except in the first unit.
        digest: digest of all inputs of the unit.
    """

    path: str
    items: tuple[FolderItem, ...]
    unmatched_skips: tuple[Skip, ...] = ()
    left_out: tuple[Skip, ...] = ()
    digest: str

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and modification times of the listed files."""
        return self.digest

    def files(self) -> tuple[str, ...]:
        """Return the paths of the images and caption files."""
        names = (name for item in self.items for name in (item.image, item.text, item.json) if name is not None)
        return tuple(storage.join(self.path, name) for name in names)

    def about(self) -> str:
        """Return the images and table rows of a local folder as a string; for a remote folder, the fingerprint."""
        return self.digest if storage.is_remote(self.path) else f"{self.items} {self.unmatched_skips}"

    def count(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples of the images that have a caption."""
        report.extend((*self.unmatched_skips, *self.left_out))
        return read_records(self.path, map(self._record_or_skip, self.items), report)

    def read_again(self, names: Collection[str], report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples of the images with the given names."""
        items = (item for item in self.items if printable_name(item.image) in names)
        return read_records(self.path, map(self._record_or_skip, items), report)

    def keys(self) -> Iterator[str]:
        """Yield the keys of the images."""
        return (item.key for item in self.items)

    def _record_or_skip(self, item: FolderItem) -> Record | Skip:
        label, place = printable_name(item.image), storage.join(self.path, item.image)
        make = lambda: Record(sample=self._sample(item, label), image=place, label=label)  # noqa: E731
        return made_or_skip(make, key=label, shard=self.path)

    def _sample(self, item: FolderItem, label: str) -> ImageTextSample:
        rows = [parse_row(row, f"the row of {label}") for row in item.rows]
        beside = parse_row(self._content(item.json), printable_name(item.json)) if item.json is not None else {}
        captions = self._text_captions(item) or json_captions(beside)
        fields: dict[str, Any] = {**(rows[0] if rows else {}), **beside}
        if not captions:
            said = tuple(dict.fromkeys((text, row.get("language")) for row in rows for text in json_captions(row)))
            captions = tuple(text for text, _ in said)
            if len({language for _, language in said}) > 1:
                fields["language"] = [language for _, language in said]
        if not captions:
            expected = f"{posixpath.splitext(label)[0]}.txt, a .json or a row in {TABLES[0]}"
            raise BadSampleError("no_caption", f"{label} has no caption; expected {expected}")
        metadata = {name: value for name, value in fields.items() if name not in (*CAPTION_FIELDS, "file_name")}
        return ImageTextSample(key=item.key, captions=captions, metadata={**metadata, "image": label})

    def _text_captions(self, item: FolderItem) -> tuple[str, ...]:
        try:
            text = "" if item.text is None else self._content(item.text).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadSampleError("bad_text", f"{printable_name(item.text or '')} is not UTF-8: {error}") from None
        return tuple(dict.fromkeys(line.strip() for line in split_lines(text) if line.strip()))

    def _content(self, name: str) -> bytes:
        try:
            return storage.read_bytes(storage.join(self.path, name), limit=MAX_LINE_BYTES)
        except storage.StorageError as error:
            raise BadSampleError("unreachable_caption", str(error)) from None
        except OSError as error:
            raise_machine_fault(error)
            raise BadSampleError("unreadable_caption", f"{printable_name(name)}: {error}") from None


@sources.register("folder")
@attrs.frozen(kw_only=True, field_transformer=strict)
class FolderSource(Source):
    """All images in a folder and its subfolders, sorted by path.

    The captions of `NAME.jpg` are the lines of `NAME.txt`. If `NAME.txt` has no caption, the captions come from the
    field `caption`, `captions`, `text` or `texts` of `NAME.json`. If neither file has a caption, the captions come from
    the same fields in the rows of `captions.jsonl` or `metadata.jsonl` whose `file_name` is the image path relative to
    the table. Other fields of `NAME.json` and of the first row become metadata; `language` becomes a list if the rows
    differ in language. The source skips and counts hidden files and other file types, see `image_files`.

    Args:
        path: path of the folder, or a URL on a store that can list folders.
        samples_per_shard: number of images per output shard.

    Raises:
        ValueError: if `samples_per_shard` is less than 1.
    """

    path: str = attrs.field(converter=os.fspath)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))

    def units(self) -> tuple[FolderUnit, ...]:
        """List the folder, read the caption tables, and return the images in units.

        Raises:
            ValueError: if the path is not a folder, cannot be listed, or holds no images.
        """
        try:
            found = list_folder(self.path)
            rows, unmatched_skips = self._rows(found.files)
        except storage.StorageError:
            raise
        except OSError as error:
            raise_machine_fault(error)
            raise ValueError(f"the folder {self.path} cannot be listed: {error}") from None
        items = list(_items(found, rows))
        if not items:
            kinds = ", ".join(IMAGE_EXTENSIONS)
            missing = "is not a folder" if not storage.is_directory(self.path) else f"holds no images ({kinds})"
            raise ValueError(f"{self.path} {missing}; expected a folder of images with captions{found.skip_summary()}")
        beside = [name for item in items for name in (item.text, item.json) if name is not None]
        left_out = found.left_out({*beside, *_tables(found.files)})

        def digest(part: Sequence[FolderItem], index: int) -> str:
            return _digest(part, found.files, () if index else unmatched_skips)

        return _units(self, items, digest, unmatched_skips, left_out)

    def _rows(self, files: Mapping[str, str]) -> tuple[Mapping[str, list[bytes]], list[Skip]]:
        """Return the lines of the tables by image, and skips for lines without an image."""
        rows: dict[str, list[bytes]] = defaultdict(list)
        unmatched_skips: list[Skip] = []
        for table in _tables(files):
            with storage.open_read(storage.join(self.path, table)) as stream:
                for row in text_rows(stream, ".jsonl"):
                    label = f"{row.label} of {printable_name(table)}"
                    named = partial(_named, row.content, label, posixpath.dirname(table), files)
                    name = attempt(named, key=label, shard=self.path, on_skip=unmatched_skips.append)
                    if name is not None and isinstance(row.content, bytes):
                        rows[name].append(row.content)
        return rows, unmatched_skips


def _units(
    source: FolderSource | ClassFolderSource,
    items: Sequence[FolderItem],
    digest: Callable[[Sequence[FolderItem], int], str],
    unmatched_skips: Sequence[Skip],
    left_out: Sequence[Skip],
) -> tuple[FolderUnit, ...]:
    """Return the images in units; the first unit reports the skips of all other files."""
    size = source.samples_per_shard
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return tuple(
        FolderUnit(
            name=numbered_name(index),
            path=source.path,
            items=tuple(part),
            unmatched_skips=() if index else tuple(unmatched_skips),
            left_out=() if index else tuple(left_out),
            digest=digest(part, index),
        )
        for index, part in enumerate(parts)
    )


def _named(line: bytes | BadSampleError, label: str, directory: str, files: Mapping[str, str]) -> str:
    """Return the relative path of the image for a table row, from `file_name`."""
    if isinstance(line, BadSampleError):
        raise line
    given = parse_row(line, label).get("file_name")
    if not isinstance(given, str) or not given:
        raise BadSampleError("missing_image", f"{label} has no `file_name`")
    name = posixpath.normpath(posixpath.join(directory, given))
    if name not in files:
        raise BadSampleError("missing_image", f"{label} names {given}, but this file does not exist")
    if not is_image_name(name):
        raise BadSampleError("image_not_an_image", f"{label} names {given}, expected one of {IMAGE_EXTENSIONS}")
    return name


def _tables(files: Iterable[str]) -> list[str]:
    return sorted(name for name in files if posixpath.basename(name) in TABLES)


def _items(found: FolderFiles, rows: Mapping[str, list[bytes]]) -> Iterator[FolderItem]:
    beside = {
        (posixpath.splitext(name)[0], _suffix(name)): name for name in sorted(found.files) if _suffix(name) in _SIDECARS
    }
    keys: set[str] = set()
    for name in found.images:
        stem = posixpath.splitext(name)[0]
        key = _key(stem)
        if key in keys:
            # The names of two images differ only in the suffix, or in characters that a key cannot have.
            key = f"{key}-{blake2b(os.fsencode(name), digest_size=8).hexdigest()}"
        keys.add(key)
        yield FolderItem(
            key=key,
            image=name,
            text=beside.get((stem, ".txt")),
            json=beside.get((stem, ".json")),
            rows=tuple(rows.get(name, ())),
        )


def _key(stem: str) -> str:
    """Return the sample key of an image: the path without suffix; for a long path, the start with a hash."""
    key = key_of_path(stem)
    if len(key.encode(errors="surrogateescape")) <= MAX_KEY_BYTES:
        return key
    return f"{key[:_KEPT_OF_LONG]}-{blake2b(os.fsencode(stem), digest_size=8).hexdigest()}"


def _digest(items: Iterable[FolderItem], files: Mapping[str, str], unmatched_skips: Iterable[Skip]) -> str:
    digest = blake2b(digest_size=16)
    for item in items:
        for name in filter(None, (item.image, item.text, item.json)):
            digest.update(os.fsencode(f"{name}\0{files[name]}\0"))
        for row in item.rows:
            digest.update(row)
    for skip in unmatched_skips:
        digest.update(f"{skip}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


NAMES = ("classes.json", "classes.txt")

_MAX_NAMES_BYTES = 2**26


def _templates(values: Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _have_a_place(_: object, attribute: attrs.Attribute[Any], values: tuple[str, ...]) -> None:
    if not values:
        raise ValueError(f"{attribute.name} is empty; expected at least one template, such as 'a photo of a {{}}.'")
    for value in values:
        if "{}" not in value:
            raise ValueError(f"template {value!r} has no {{}} for the class name")


@sources.register("class_folder")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ClassFolderSource(Source):
    """Labelled images in one folder per class: `PATH/CLASS/NAME.jpg`, also in subfolders of the class.

    The captions of a sample are the templates with the class name; the metadata have the class name as `label`. The
    class name is the folder name, with spaces for underscores, or a name from `classes.json`
    (`{"n01440764": "tench"}`) or `classes.txt` (a line per class: folder, tab, name) in `path`. The source skips and
    counts hidden files and other file types, see `image_files`.

    The source mixes the images of all classes, so shards and batches contain several classes.

    Args:
        path: path of the folder, or a URL on a store that can list folders.
        templates: prompt templates with a `{}` for the class name.
        samples_per_shard: number of images per output shard.

    Raises:
        ValueError: if there is no template, a template has no `{}`, or `samples_per_shard` is less than 1.
    """

    path: str = attrs.field(converter=os.fspath)
    templates: tuple[str, ...] = attrs.field(default=TEMPLATES, converter=_templates, validator=_have_a_place)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))

    def units(self) -> tuple[FolderUnit, ...]:
        """List the folder and return the images in units; the first unit reports skipped images outside class folders.

        Raises:
            ValueError: if the path is not a folder, cannot be listed, or has no images in class folders; if
                `classes.json` or `classes.txt` is malformed or lists a folder without images; or if two folders have
                the same class name.
        """
        items, unmatched_skips, digest, left_out = self._items()
        names = self._names({item.folder for item in items})
        rows = {}
        for folder, name in names.items():
            captions = [template.replace("{}", name) for template in self.templates]
            rows[folder] = json.dumps({"captions": captions, "label": name, "class": folder}).encode()
        digest = blake2b(b"\0".join((digest.encode(), *rows.values())), digest_size=16).hexdigest()
        mixed = sorted(items, key=lambda item: blake2b(item.key.encode(), digest_size=16).digest())
        named = [FolderItem(key=item.key, image=item.image, rows=(rows[item.folder],)) for item in mixed]
        # The position of an image depends on all images, so a change of one image changes every unit.
        return _units(self, named, lambda *_: digest, unmatched_skips, left_out)

    def class_names(self) -> tuple[str, ...]:
        """List the folder and return the sorted class names.

        Raises:
            ValueError: see `units`.
        """
        items, *_ = self._items()
        return tuple(sorted(self._names({item.folder for item in items}).values()))

    def _items(self) -> tuple[list[FolderItem], list[Skip], str, tuple[Skip, ...]]:
        """Return images in class folders, skips of images outside, a digest of all images, and skips of other files."""
        units = FolderSource(path=self.path).units()
        items = [item for unit in units for item in unit.items]
        classed = [item for item in items if "/" in item.image]
        if not classed:
            raise ValueError(
                f"the images of {self.path} are not in class folders; expected one folder per class, such as "
                f"{storage.join(self.path, 'CLASS/NAME.jpg')}"
            )
        unmatched_skips = [
            Skip(reason="no_class", key=item.image, shard=self.path, detail=f"{item.image} is not in a class folder")
            for item in items
            if "/" not in item.image
        ]
        left_out = list_folder(self.path).left_out(NAMES)
        return classed, unmatched_skips, "".join(unit.digest for unit in units), left_out

    def _names(self, folders: set[str]) -> dict[str, str]:
        """Return the class names by folder name, in the order of the folder names."""
        names = {folder: folder.replace("_", " ").strip() for folder in sorted(folders)}
        for table in NAMES:
            place = storage.join(self.path, table)
            if storage.exists(place):
                given = _parsed(place, storage.read_bytes(place, limit=_MAX_NAMES_BYTES))
                unknown = sorted(given.keys() - names.keys())
                if unknown:
                    raise ValueError(f"{place} names {unknown[0]!r}, but {self.path} has no such folder with images")
                names |= given
                break
        folder_of: dict[str, str] = {}
        for folder, name in names.items():
            if name in folder_of:
                raise ValueError(
                    f"the folders {folder_of[name]!r} and {folder!r} have the same class name {name!r}; rename a class"
                )
            folder_of[name] = folder
        return names


def _parsed(place: str, content: bytes) -> dict[str, str]:
    """Return the class names in `classes.json` or `classes.txt`, by folder name."""
    try:
        text = content.decode("utf-8-sig")
        if place.endswith(".json"):
            names = parse_json(text, max_characters=_MAX_NAMES_BYTES)
        else:
            rows = [line.split("\t") for line in split_lines(text) if line.strip()]
            if twice := repeated(folder for folder, *_ in rows):
                raise ValueError(f"the folder {twice[0][:80]!r} appears twice")  # noqa: TRY301
            names = dict(rows)
    except ValueError as error:
        expected = "a JSON object" if place.endswith(".json") else "a line per class: folder, tab, name"
        raise ValueError(f"{place} cannot be read ({error}); expected {expected}, in UTF-8") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise ValueError(f"{place} must map the folders of classes to non-blank names")
    return {str(folder): name.strip() for folder, name in names.items()}
