"""Lists of pairs as sources: `.jsonl`, `.parquet`, `.csv` and `.tsv` files with a sample a row.

`tables.py` reads the rows; here is what a row says of a sample.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.images.files import list_folder, printable_name
from mobileclip.data.samples.members import json_captions
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import expand_shards, paths_of
from mobileclip.data.skips import CONNECTION_FAILED, BadSampleError, Skip, SkipReport, made_or_skip
from mobileclip.datasets.sources.base import (
    TEMPLATES,
    Record,
    Source,
    Unit,
    called_ahead,
    directory_of,
    key_of,
    key_of_path,
    locate,
    num_common,
    numbered_name,
    read_records,
    sources,
    told,
    without_user,
)
from mobileclip.datasets.sources.rows import SCHEMES, RowOptions
from mobileclip.datasets.sources.tables import LABEL, LINES, TABLES, Part, Row, Table, open_table
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

# As img2dataset, DataComp, LAION and open_clip call them.
PATHS = ("path", "image_path", "filepath", "file_name", "image")
URLS = ("url", "image_url")
CAPTIONS = ("caption", "captions", "text", "texts", "title")
LAST_PATHS = ("filename",)
"""Where nothing else says where images are: beside a URL it is what a download was called."""
UIDS = ("uid",)
KEYS = ("key",)
CAPTION_FIELDS = ("caption", "captions", "text", "texts")
"""Of lines of JSON."""

_MISSING = "missing"

_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Columns:
    """Names of the columns that are a sample's own; None if a table has none.

    Args:
        path: of the images' paths, or of the images that the table holds.
        url: of the images' URLs.
        captions: of the captions; none where the `label` of an image says what it shows.
        uid: of the uids.
        key: of the keys.
        sha256: of the images' hashes.
    """

    path: str | None
    url: str | None
    captions: tuple[str, ...]
    uid: str | None
    key: str | None
    sha256: str | None

    @property
    def names(self) -> frozenset[str]:
        """Names of all columns that are used."""
        return frozenset(filter(None, (self.path, self.url, *self.captions, self.uid, self.key, self.sha256)))


def find_columns(table: Table, options: RowOptions) -> Columns:
    """Return the columns of a table that hold images, captions, uids, keys and hashes.

    Args:
        table: with the names of its columns.
        options: what a person named.

    Raises:
        ValueError: if a column that was named is missing, or nothing says where images or captions are.
    """
    names = (*table.columns, *table.images)
    lower = {name.lower(): name for name in reversed(names)}
    shown = ", ".join(repr(name[:40]) for name in names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")

    def named(given: str | None, usual: Sequence[str] = ()) -> str | None:
        if given is not None and given not in names:
            raise ValueError(f"{table.path} has no column {given!r}; it has {shown}")
        return given or next((lower[name] for name in usual if name in lower), None)

    def unknown(what: str, advice: str) -> ValueError:
        header = "" if options.header else "; a file whose first line has no names needs `header` (--header)"
        return ValueError(
            f"nothing says which column of {table.path} has {what}; name one in {advice} of {shown}{header}"
        )

    held = next(iter([*(name for name in PATHS if name in table.images), *table.images]), None)
    # Who names one of the two wants no other.
    wants_url = options.path_column is None and options.url_column is not None
    path = None if wants_url else named(options.path_column or held, PATHS)
    url = named(options.url_column, URLS)
    path = named(None, LAST_PATHS) if path is None and url is None else path
    captions = [named(name) for name in options.caption_columns] or [named(None, CAPTIONS)]
    if path is None and url is None:
        advice = "`path_column` or `url_column` (--path-column, --url-column)"
        raise unknown("the images' paths or URLs", advice)
    if captions == [None] and not (path in table.images and LABEL in names):
        raise unknown("captions", "`caption_columns` (--caption-columns)")
    return Columns(
        path=path,
        url=url,
        captions=tuple(filter(None, captions)),
        uid=named(options.uid_column, UIDS),
        key=named(options.key_column, KEYS),
        sha256=named(options.hash_column),
    )


LINE_COLUMNS = Columns(path="image", url="url", captions=CAPTION_FIELDS, uid=None, key="key", sha256=None)


@attrs.frozen(kw_only=True)
class RowReading:
    """Makes samples of a list's rows.

    Args:
        columns: which columns hold what; the others are metadata.
        image_root: where relative image paths begin.
        options: what the rows may name.
        table: what keys begin with that rows do not give; empty for lines of JSON.
        held: the column with images, where the table holds them.
        class_names: of a `label` that is a number, where it does.
    """

    columns: Columns
    image_root: str
    options: RowOptions
    table: str = ""
    held: str | None = None
    class_names: tuple[str, ...] = ()

    def about(self, state: str) -> str:
        """Return a text that changes with the state of rows and with how they are read."""
        return f"{state} {self.columns} {self.image_root}" if self.table else f"{state} {self.image_root}"

    def record(self, number: int, label: str, cells: dict[str, Any] | BadSampleError) -> Record:
        """Return the sample of a row, and where its image is.

        Args:
            number: what the key is made of, where the row gives none.
            label: what the row is called.
            cells: of the row, or why it cannot be read.

        Raises:
            BadSampleError: if it cannot be used.
        """
        if isinstance(cells, BadSampleError):
            raise cells
        columns, row = self.columns, {**cells}
        held = None if self.held is None else row[self.held]
        if self.held is not None:
            row[self.held] = None if held is None else held["path"]
            self._name_label(row, label)
        given = {name: row.get(getattr(columns, name)) for name in ("path", "url", "uid", "key", "sha256")}
        if self.table:  # a cell without a text is empty
            given = {name: None if isinstance(value, str) and not value else value for name, value in given.items()}
        path, url = (given[name] if isinstance(given[name], str) else None for name in ("path", "url"))
        # What a table says of where an image came from is not opened where the image is in the table.
        is_held = held is not None and held.get("bytes", b"") is not None
        image = path or ("" if is_held else url) or ""
        if not image and not is_held:
            raise BadSampleError("missing_image", f"{label} has neither a path nor a URL of an image")
        captions = [text for name in columns.captions for text in _several(row.get(name))]
        if not columns.captions and isinstance(row[LABEL], str):
            captions = [template.replace("{}", row[LABEL]) for template in TEMPLATES]
        used = columns.names
        metadata = {name: value for name, value in row.items() if name not in used}
        if given["uid"] is not None:
            metadata["uid"] = str(given["uid"])
        if storage.is_remote(image):
            url = without_user(image)
        elif image:
            metadata["image"] = image
        key = given["uid"] if given["key"] is None else given["key"]
        return Record(
            sample=ImageTextSample(
                key=key_of(key, f"{self.table}/{number:09d}" if self.table else f"{number:09d}"),
                captions=json_captions({"captions": captions}),
                url=url or None,
                metadata=metadata,
            ),
            image=image if is_held else locate(image, self.image_root, self.options),
            label=label,
            hosts=self.options.hosts,
            sha256=_hash(given["sha256"], columns.sha256, label),
            is_held=is_held,
            data=None if held is None else held.get("bytes"),
        )

    def mark(self, number: int, label: str, cells: dict[str, Any] | BadSampleError) -> str:
        """Return what tells the state of the local image of a row that can be used."""
        try:
            record = self.record(number, label, cells)
            return "" if record.is_held or record.is_remote else storage.fingerprint(record.image)
        except BadSampleError:
            return ""
        except (OSError, ValueError) as error:
            raise_machine_fault(error)
            return _MISSING

    def _name_label(self, row: dict[str, Any], label: str) -> None:
        """Give the class of a row its name."""
        number = row.get(LABEL)
        if not self.class_names or not isinstance(number, int):
            return
        if not 0 <= number < len(self.class_names):
            classes = len(self.class_names)
            raise BadSampleError("bad_label", f"{label} has the label {number}, but there are {classes} classes")
        row[LABEL] = self.class_names[number]


def _several(value: Any) -> Sequence[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _hash(value: Any, name: str | None, label: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _SHA256.fullmatch(value.lower()):
        detail = f"{label} has {str(value)[:80]!r} as {name!r}, expected a SHA-256 in hexadecimal"
        raise BadSampleError("bad_hash", detail)
    return value.lower()


@attrs.frozen(kw_only=True)
class ListUnit(Unit):
    """A range of rows of a list.

    Args:
        table: the list.
        part: which rows.
        reading: what a row says of a sample.
    """

    table: Table
    part: Part
    reading: RowReading

    @property
    def path(self) -> str:
        """Path or URL of the list."""
        return self.table.path

    @property
    def _is_parquet(self) -> bool:
        return self.table.suffix == ".parquet"

    def rows(self, *, images: bool = False) -> Iterator[Row]:
        """Yield the rows: what keys are made of, what messages call it, and its cells or why it cannot be read.

        Args:
            images: whether those are read that the list holds.
        """
        held = self.reading.held
        columns = self.table.columns if held is None else (*self.table.columns, held)
        return self.table.rows(self.part, columns, held=held, images=images)

    def _state(self) -> str:
        """Return a text that changes when the rows do: of a Parquet file its size and time of change, or its mark."""
        if self._is_parquet:
            return f"{storage.fingerprint(self.path)} {self.part.first_row} {self.part.num_rows}"
        return self.part.digest if self.table.suffix in LINES else f"{self.part.digest} {self.part.first_row}"

    def about(self) -> str:
        """Return what changes with the rows and with where their images are."""
        if self._is_parquet and not storage.is_remote(self.path):
            return self.reading.about(f"{self.part.first_row} {self.part.num_rows}")
        with told(self.path):
            return self.reading.about(self._state())

    def fingerprint(self) -> str:
        """Return a hash of the rows, and of sizes and times of change of the local images that they name."""
        with told(self.path):
            digest = blake2b(os.fsencode(self.reading.about(self._state())), digest_size=16)
            if not storage.is_remote(self.reading.image_root):
                for row in self.rows():
                    digest.update(self.reading.mark(*row).encode())
        return digest.hexdigest()

    def count(self) -> int:
        """Return the number of rows."""
        return self.part.num_rows

    def records(self, *, images: bool = False) -> Iterator[Record | Skip]:
        """Yield what every row says of a sample, or why it cannot be used; no image is looked for.

        Args:
            images: whether those are read that the list holds.
        """
        try:
            for number, label, cells in self.rows(images=images):
                make = partial(self.reading.record, number, label, cells)
                yield made_or_skip(make, key=label, shard=self.path)
        except OSError as error:
            raise_machine_fault(error)
            reason = CONNECTION_FAILED if storage.is_transient(error) else "unreadable_file"
            yield Skip(reason=reason, key="", shard=self.path, detail=f"rows of {self.name}: {error}")

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples with their images."""
        return read_records(self.path, self.records(images=True), report)

    def read_again(self, names: Collection[str], report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples of the rows that skips have named."""
        return read_records(self.path, (one for one in self.records(images=True) if one.key in names), report)

    def files(self) -> tuple[str, ...]:
        """Return the images that the list names, and a Parquet file itself."""
        images = (one.image for one in self.records() if isinstance(one, Record) and not one.is_held)
        return (*((self.path,) if self._is_parquet else ()), *images)

    def described(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples without their images, which are not looked for."""
        for record in self.records():
            if isinstance(record, Skip):
                report.add(record)
            else:
                yield record.sample


def _optional_path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@sources.register("jsonl")
@attrs.frozen(kw_only=True, field_transformer=strict)
class JsonLinesSource(Source):
    """A file with one JSON object a line.

    `image` is a path or a URL, kept with the sample; `caption`, `captions`, `text` or `texts` hold one caption or
    several; `key` is optional, the line's number does as well. Other fields become metadata.

    The file may be a stranger's: unless they are told otherwise, its lines name files below `image_root`, and URLs
    of web servers that anyone can reach.

    Args:
        path: the file, or its URL; not compressed.
        image_root: where relative image paths begin; None for the directory of the file.
        samples_per_shard: lines that become one shard.
        inside: whether local images must lie below `image_root`; False lets lines name any file.
        schemes: URL schemes that lines may use, such as `https` and `s3`.
        hosts: web servers that lines may name although they are not at a public address, such as `127.0.0.1`.

    Raises:
        ValueError: if a number is out of its range.
    """

    path: str = attrs.field(converter=os.fspath)
    image_root: str | None = attrs.field(default=None, converter=_optional_path)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    inside: bool = True
    schemes: tuple[str, ...] = attrs.field(default=SCHEMES, converter=_names)
    hosts: tuple[str, ...] = attrs.field(default=(), converter=_names)

    def allowing(self, rows: RowOptions) -> JsonLinesSource:
        """Return this file with other options for its lines.

        Raises:
            ValueError: if columns are named, which are a table's.
        """
        if rows.names_columns:
            raise ValueError(
                f"{self.path} has no columns that could be named; its lines have `image` and `caption`, as JSON"
            )
        return attrs.evolve(self, inside=rows.inside, schemes=rows.schemes, hosts=rows.hosts)

    def units(self) -> tuple[ListUnit, ...]:
        """Return ranges of lines; the file is read once, to find them.

        Raises:
            ValueError: if the file cannot be read, has no lines or is compressed.
        """
        root = directory_of(self.path) if self.image_root is None else self.image_root
        options = RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)
        reading = RowReading(columns=LINE_COLUMNS, image_root=root, options=options)
        with told(self.path):
            table = open_table(self.path, LINES[0])
            units = tuple(
                ListUnit(name=numbered_name(index), table=table, part=part, reading=reading)
                for index, part in enumerate(table.parts(self.samples_per_shard))
            )
        if not units:
            raise ValueError(f"{self.path} has no lines; expected one JSON object a line")
        return units


@sources.register("tables")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TableSource(Source):
    """Tables of pairs, as DataComp's metadata and img2dataset's lists are: a row has an image, captions, and a uid.

    A unit is a range of rows. It is called like its file, relative to the folder, with a number. Cells that are no
    sample's own become metadata; columns of dates, decimals and bytes are left out. The tables may be a stranger's: see
    `RowOptions`.

    Args:
        tables: a table, a brace pattern such as `metadata/{00000..00127}.parquet`, several of them, or a folder, which
            is looked through with the folders below. Any of them may be a URL. Not compressed, but for what
            Parquet compresses itself.
        image_root: where relative image paths begin; None for the folder of their table.
        samples_per_shard: rows that become one shard.
        options: which columns hold what, and what rows may name.

    Raises:
        ValueError: if a number is out of its range.
    """

    tables: tuple[str, ...] = attrs.field(converter=paths_of)
    image_root: str | None = attrs.field(default=None, converter=_optional_path)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    options: RowOptions = RowOptions()

    def allowing(self, rows: RowOptions) -> TableSource:
        """Return these tables with other options for their rows."""
        return attrs.evolve(self, options=rows)

    def units(self) -> tuple[ListUnit, ...]:
        """Return ranges of rows: of Parquet files the end is read to find them, of others the whole.

        Raises:
            ValueError: if there are no tables or no rows, a table cannot be read or is compressed, its columns are not
                those that were named, or two tables have one name but for the suffix.
            StorageError: if a store cannot be reached.
            ImportError: if Apache Arrow is not installed (extra `parquet`).
        """
        found = list(self._found())
        if not found:
            raise ValueError(f"there are no tables ({', '.join(TABLES)}) in {', '.join(self.tables)}")
        names: dict[str, str] = {}
        for name, path in found:
            if names.setdefault(_stem(name), path) != path:
                raise ValueError(f"{names[_stem(name)]} and {path} have one name but for the suffix; rename one")
        calls = ((storage.is_remote(path), partial(self._units, name, path)) for name, path in found)
        units = tuple(unit for part in called_ahead(calls) for unit in part)
        if not units:
            raise ValueError(f"{', '.join(self.tables)}: there are no rows")
        return units

    def _found(self) -> Iterator[tuple[str, str]]:
        """Yield the tables' names, relative to the folder, and paths."""
        if len(self.tables) == 1 and not is_table(self.tables[0]):
            (folder,) = self.tables
            for name in sorted(filter(is_table, list_folder(folder).files)):
                yield name, storage.join(folder, name)
            return
        paths = expand_shards(self.tables)
        parts = [path.partition("?")[0].split("/") for path in paths]
        num_above = num_common(folders for *folders, _ in parts)
        for path, names in zip(paths, parts, strict=True):
            yield "/".join(names[num_above:]), path

    def _units(self, name: str, path: str) -> tuple[ListUnit, ...]:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - may be a URL
        with told(path):
            table = open_table(path, suffix.lower(), header=self.options.header)
            columns = find_columns(table, self.options)
            is_held = columns.path in table.images
            reading = RowReading(
                table=key_of_path(stem),
                columns=columns,
                image_root=directory_of(path) if self.image_root is None else self.image_root,
                options=self.options,
                held=columns.path if is_held else None,
                class_names=table.class_names if is_held else (),
            )
            parts = enumerate(table.parts(self.samples_per_shard))
            unit_name = printable_name(stem)
            return tuple(
                ListUnit(name=f"{unit_name}-{index:05d}.tar", table=table, part=part, reading=reading)
                for index, part in parts
            )


def is_table(path: str) -> bool:
    """Return whether a file is a table by its name."""
    return path.partition("?")[0].lower().endswith(TABLES)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - may be a URL
