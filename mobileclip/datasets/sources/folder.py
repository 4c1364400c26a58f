"""A folder of images as a source, with captions beside them or in a table."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
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
from mobileclip.datasets.sources.base import Source, Unit, numbered_name, sources
from mobileclip.datasets.sources.lists import CAPTION_FIELDS
from mobileclip.datasets.sources.records import MAX_LINE_BYTES, Record, key_of_path, parse_row, read_records
from mobileclip.datasets.sources.tables import text_rows
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import split_lines, strict

TABLES = ("captions.jsonl", "metadata.jsonl")

_SIDECARS = (".txt", ".json")
# Characters of a key that would be too long, before the digest of all of it.
_KEPT_OF_LONG = 200


@attrs.frozen(kw_only=True)
class FolderItem:
    """An image and where its captions are.

    Args:
        key: of the sample.
        image: relative path, with `/` between its parts.
        text: relative path of the file with a caption a line.
        json: relative path of the file with a JSON object.
        rows: lines of tables that name the image.
    """

    key: str
    image: str
    text: str | None = None
    json: str | None = None
    rows: tuple[bytes, ...] = ()


@attrs.frozen(kw_only=True)
class FolderUnit(Unit):
    """Some of the images.

    Args:
        path: the folder.
        items: the images.
        stray: rows of tables that belong to no image; the first unit reports them.
        left_out: files that are neither images nor their captions; the first unit reports them.
        digest: of everything that is read.
    """

    path: str
    items: tuple[FolderItem, ...]
    stray: tuple[Skip, ...] = ()
    left_out: tuple[Skip, ...] = ()
    digest: str

    def fingerprint(self) -> str:
        """Return a hash of names, sizes and times of change, as they were when the folder was listed."""
        return self.digest

    def files(self) -> tuple[str, ...]:
        """Return the images, and the captions beside them."""
        names = (name for item in self.items for name in (item.image, item.text, item.json) if name is not None)
        return tuple(storage.join(self.path, name) for name in names)

    def about(self) -> str:
        """Return which images there are and what their tables say, of a folder on this machine."""
        return self.digest if storage.is_remote(self.path) else f"{self.items} {self.stray}"

    def count(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the images that have a caption."""
        report.extend((*self.stray, *self.left_out))
        return read_records(self.path, map(self._record_or_skip, self.items), report)

    def read_again(self, names: Collection[str], report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the images that skips have named."""
        items = (item for item in self.items if printable_name(item.image) in names)
        return read_records(self.path, map(self._record_or_skip, items), report)

    def keys(self) -> Iterator[str]:
        """Yield the keys of the images."""
        return (item.key for item in self.items)

    def _record_or_skip(self, item: FolderItem) -> Record | Skip:
        label = printable_name(item.image)

        def record() -> Record:
            return Record(sample=self._sample(item, label), image=storage.join(self.path, item.image), label=label)

        return made_or_skip(record, key=label, shard=self.path)

    def _sample(self, item: FolderItem, label: str) -> ImageTextSample:
        rows = [parse_row(row, f"the row of {label}") for row in item.rows]
        beside = parse_row(self._content(item.json), printable_name(item.json)) if item.json is not None else {}
        captions = self._text_captions(item)
        captions = captions or json_captions(beside)
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
        if item.text is None:
            return ()
        try:
            lines = split_lines(self._content(item.text).decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise BadSampleError("bad_text", f"{printable_name(item.text)} is not UTF-8: {error}") from None
        return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))

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
    """A folder of images, with those in the folders below, sorted by path.

    The captions of `NAME.jpg` are the lines of `NAME.txt`; or the `caption`, `captions`, `text` or `texts` of
    `NAME.json`; or those of the rows of `captions.jsonl` or `metadata.jsonl` whose `file_name`, relative to the table,
    is the image. The first that has any counts; other fields become metadata: those of an image's first row, but for
    `language`, a list for the captions where rows have different ones. What is hidden or no image is left out
    and counted, as `image_files` says.

    Args:
        path: the folder, or its URL on a store that can be listed.
        samples_per_shard: images that become one shard.

    Raises:
        ValueError: if a number is out of its range.
    """

    path: str = attrs.field(converter=os.fspath)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))

    def units(self) -> tuple[FolderUnit, ...]:
        """Return the images in parts; the folder is listed and its tables are read.

        Raises:
            ValueError: if it is no folder, cannot be listed, or holds no images.
        """
        try:
            found = list_folder(self.path)
            rows, stray = self._rows(found.files)
        except storage.StorageError:
            raise
        except OSError as error:
            raise_machine_fault(error)
            raise ValueError(f"the folder {self.path} cannot be looked through: {error}") from None
        items = list(_items(found, rows))
        if not items:
            kinds = ", ".join(IMAGE_EXTENSIONS)
            missing = "is no folder" if not storage.is_directory(self.path) else f"holds no images ({kinds})"
            raise ValueError(f"{self.path} {missing}; expected a folder of images with captions{found.said_left_out()}")
        beside = [name for item in items for name in (item.text, item.json) if name is not None]
        left_out = found.left_out({*beside, *_tables(found.files)})
        parts = [
            items[start : start + self.samples_per_shard] for start in range(0, len(items), self.samples_per_shard)
        ]
        return tuple(
            FolderUnit(
                name=numbered_name(index),
                path=self.path,
                items=tuple(part),
                stray=() if index else tuple(stray),
                left_out=() if index else left_out,
                digest=_digest(part, found.files, () if index else stray),
            )
            for index, part in enumerate(parts)
        )

    def _rows(self, files: Mapping[str, str]) -> tuple[Mapping[str, list[bytes]], list[Skip]]:
        """Return the tables' lines by the image they name, and what names none."""
        rows: dict[str, list[bytes]] = defaultdict(list)
        stray: list[Skip] = []
        for table in _tables(files):
            with storage.open_read(storage.join(self.path, table)) as stream:
                for row in text_rows(stream, ".jsonl"):
                    label = f"{row.label} of {printable_name(table)}"
                    named = partial(_named, row.content, label, posixpath.dirname(table), files)
                    name = attempt(named, key=label, shard=self.path, on_skip=stray.append)
                    if name is not None and isinstance(row.content, bytes):
                        rows[name].append(row.content)
        return rows, stray


def _named(line: bytes | BadSampleError, label: str, directory: str, files: Mapping[str, str]) -> str:
    """Return the image that the row of a table names."""
    if isinstance(line, BadSampleError):
        raise line
    given = parse_row(line, label).get("file_name")
    if not isinstance(given, str) or not given:
        raise BadSampleError("missing_image", f"{label} has no `file_name`")
    name = posixpath.normpath(posixpath.join(directory, given))
    if name not in files:
        raise BadSampleError("missing_image", f"{label} names {given}, which is not there")
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
            # Two pictures with one name but for the suffix, or for what a key cannot hold.
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
    """Return what the sample of an image is called, of a path that is too long by a hash."""
    key = key_of_path(stem)
    if len(key.encode(errors="surrogateescape")) <= MAX_KEY_BYTES:
        return key
    return f"{key[:_KEPT_OF_LONG]}-{blake2b(os.fsencode(stem), digest_size=8).hexdigest()}"


def _digest(items: Iterable[FolderItem], files: Mapping[str, str], stray: Iterable[Skip]) -> str:
    digest = blake2b(digest_size=16)
    for item in items:
        for name in filter(None, (item.image, item.text, item.json)):
            digest.update(os.fsencode(f"{name}\0{files[name]}\0"))
        for row in item.rows:
            digest.update(row)
    for skip in stray:
        digest.update(f"{skip}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
