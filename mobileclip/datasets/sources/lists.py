"""Reads lists of image-text pairs: `.jsonl`, `.parquet`, `.csv` and `.tsv` files with one sample per row.

The module `tables` decodes the rows; this module converts rows to samples.
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
    call_ahead,
    directory_of,
    key_of,
    key_of_path,
    locate,
    num_common,
    numbered_name,
    read_records,
    reading_errors,
    sources,
    without_user,
)
from mobileclip.datasets.sources.rows import SCHEMES, RowOptions
from mobileclip.datasets.sources.tables import LABEL, LINES, TABLES, Part, Row, Table, open_table
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

# Column names of img2dataset, DataComp, LAION and open_clip.
PATHS = ("path", "image_path", "filepath", "file_name", "image")
URLS = ("url", "image_url")
CAPTIONS = ("caption", "captions", "text", "texts", "title")
LAST_PATHS = ("filename",)
"""Path columns for tables without a URL column; with URLs, `filename` may be the name of a downloaded file."""
UIDS = ("uid",)
KEYS = ("key",)
CAPTION_FIELDS = ("caption", "captions", "text", "texts")
"""Fields with captions in JSON Lines files."""

_MISSING = "missing"

_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Columns:
    """Names of the main columns of a table; None for a missing column.

    Args:
        path: column of image paths, or of images stored in the table.
        url: column of image URLs.
        captions: columns of captions; empty if images have a `label` instead.
        uid: column of uids.
        key: column of keys.
        sha256: column of the images' SHA-256 hashes.
    """

    path: str | None
    url: str | None
    captions: tuple[str, ...]
    uid: str | None
    key: str | None
    sha256: str | None

    @property
    def names(self) -> frozenset[str]:
        """Names of all used columns."""
        return frozenset(filter(None, (self.path, self.url, *self.captions, self.uid, self.key, self.sha256)))


def find_columns(table: Table, options: RowOptions) -> Columns:
    """Return the names of the columns with images, captions, uids, keys and hashes.

    Args:
        table: table with its column names.
        options: column names from the user.

    Raises:
        ValueError: if a column in `options` is missing, or the table has no known column of images or captions.
    """
    names = (*table.columns, *table.images)
    lower = {name.lower(): name for name in reversed(names)}
    shown = ", ".join(repr(name[:40]) for name in names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")

    def named(given: str | None, usual: Sequence[str] = ()) -> str | None:
        if given is not None and given not in names:
            raise ValueError(f"{table.path} has no column {given!r}; the columns are {shown}")
        return given or next((lower[name] for name in usual if name in lower), None)

    def unknown(what: str, advice: str) -> ValueError:
        header = "" if options.header else "; for a file without a header line, set `header` (--header)"
        return ValueError(
            f"no column of {table.path} has a known name for {what}; set {advice} to one of {shown}{header}"
        )

    held = next(iter([*(name for name in PATHS if name in table.images), *table.images]), None)
    # If the user names only the URL column, no path column is used.
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
    """Converts the rows of a list to samples.

    Args:
        columns: names of the main columns; other columns become metadata.
        image_root: folder or URL at which relative image paths start.
        options: allowed files and servers.
        table: prefix of generated keys; empty for JSON Lines.
        held: name of the column with images stored in the table; None without such a column.
        class_names: names of the classes, for a numeric `label`.
    """

    columns: Columns
    image_root: str
    options: RowOptions
    table: str = ""
    held: str | None = None
    class_names: tuple[str, ...] = ()

    def about(self, state: str) -> str:
        """Return a string that changes with the rows and the reading options."""
        return f"{state} {self.columns} {self.image_root}" if self.table else f"{state} {self.image_root}"

    def record(self, number: int, label: str, cells: dict[str, Any] | BadSampleError) -> Record:
        """Return the record of a row: the sample without its image, and the location of the image.

        Args:
            number: number of the row, for a generated key.
            label: name of the row in messages.
            cells: cells of the row by column, or the error of an unreadable row.

        Raises:
            BadSampleError: if the row is unreadable, has no image, or has an invalid or forbidden value.
        """
        if isinstance(cells, BadSampleError):
            raise cells
        columns, row = self.columns, {**cells}
        held = None if self.held is None else row[self.held]
        if self.held is not None:
            row[self.held] = None if held is None else held["path"]
            self._name_label(row, label)
        given = {name: row.get(getattr(columns, name)) for name in ("path", "url", "uid", "key", "sha256")}
        if self.table:  # an empty string means an empty cell
            given = {name: None if isinstance(value, str) and not value else value for name, value in given.items()}
        path, url = (given[name] if isinstance(given[name], str) else None for name in ("path", "url"))
        # If the table contains the image, its path only states the origin and is not opened.
        is_inline = held is not None and held.get("bytes", b"") is not None
        image = path or ("" if is_inline else url) or ""
        if not image and not is_inline:
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
            image=image if is_inline else locate(image, self.image_root, self.options),
            label=label,
            hosts=self.options.hosts,
            sha256=_hash(given["sha256"], columns.sha256, label),
            is_inline=is_inline,
            data=None if held is None else held.get("bytes"),
        )

    def mark(self, number: int, label: str, cells: dict[str, Any] | BadSampleError) -> str:
        """Return the fingerprint (size and modification time) of a row's local image; empty for other images."""
        try:
            record = self.record(number, label, cells)
            return "" if record.is_inline or record.is_remote else storage.fingerprint(record.image)
        except BadSampleError:
            return ""
        except (OSError, ValueError) as error:
            raise_machine_fault(error)
            return _MISSING

    def _name_label(self, row: dict[str, Any], label: str) -> None:
        """Replace the class number in `row` with the class name."""
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
    """A range of rows in a list.

    Args:
        table: the table or JSON Lines file.
        part: range of rows in the table.
        reading: converter from rows to samples.
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
        """Yield each row: the row number (for the key), the row name (for messages), and the cells or an error.

        Args:
            images: whether to read images stored in the list.
        """
        held = self.reading.held
        columns = self.table.columns if held is None else (*self.table.columns, held)
        return self.table.rows(self.part, columns, held=held, images=images)

    def _state(self) -> str:
        """Return a string that changes with the rows: a digest, or the file's fingerprint for a Parquet file."""
        if self._is_parquet:
            return f"{storage.fingerprint(self.path)} {self.part.first_row} {self.part.num_rows}"
        return self.part.digest if self.table.suffix in LINES else f"{self.part.digest} {self.part.first_row}"

    def about(self) -> str:
        """Return a string that changes with `image_root` and the rows; for local Parquet files, only with the range."""
        if self._is_parquet and not storage.is_remote(self.path):
            return self.reading.about(f"{self.part.first_row} {self.part.num_rows}")
        with reading_errors(self.path):
            return self.reading.about(self._state())

    def fingerprint(self) -> str:
        """Return a hash of the rows, and of the sizes and modification times of local images."""
        with reading_errors(self.path):
            digest = blake2b(os.fsencode(self.reading.about(self._state())), digest_size=16)
            if not storage.is_remote(self.reading.image_root):
                for row in self.rows():
                    digest.update(self.reading.mark(*row).encode())
        return digest.hexdigest()

    def count(self) -> int:
        """Return the number of rows."""
        return self.part.num_rows

    def records(self, *, images: bool = False) -> Iterator[Record | Skip]:
        """Yield a record for every usable row and a skip for every other row, without opening image files.

        Args:
            images: whether to read images stored in the list.
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
        """Read the rows with the given names again, and yield the samples with images."""
        return read_records(self.path, (one for one in self.records(images=True) if one.key in names), report)

    def files(self) -> tuple[str, ...]:
        """Return the image files of the rows; for a Parquet file, also return the path of the list."""
        images = (one.image for one in self.records() if isinstance(one, Record) and not one.is_inline)
        return (*((self.path,) if self._is_parquet else ()), *images)

    def described(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples without their images."""
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
    """A file with one JSON object per line.

    The field `image` is the path or URL of the image; the sample keeps this path or URL. The field `caption`,
    `captions`, `text` or `texts` contains one or several captions. `key` is optional; the default key is the line
    number. Other fields become metadata.

    The file may be untrusted: by default, lines may name only files below `image_root` and URLs of public web servers.

    Args:
        path: path or URL of the uncompressed file.
        image_root: folder or URL at which relative image paths start; None for the directory of the file.
        samples_per_shard: number of lines per output shard.
        inside: whether local images must lie below `image_root`; False allows any file.
        schemes: allowed URL schemes, such as `https` and `s3`.
        hosts: allowed web servers without a public address, such as `127.0.0.1`.

    Raises:
        ValueError: if `samples_per_shard` is less than 1.
    """

    path: str = attrs.field(converter=os.fspath)
    image_root: str | None = attrs.field(default=None, converter=_optional_path)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    inside: bool = True
    schemes: tuple[str, ...] = attrs.field(default=SCHEMES, converter=_names)
    hosts: tuple[str, ...] = attrs.field(default=(), converter=_names)

    def allowing(self, rows: RowOptions) -> JsonLinesSource:
        """Return a copy of the source with the allowed files and servers of the given options.

        Raises:
            ValueError: if the options contain column names, because only tables have columns.
        """
        if rows.names_columns:
            raise ValueError(
                f"{self.path} has JSON objects with the fields `image` and `caption`; only tables accept column names"
            )
        return attrs.evolve(self, inside=rows.inside, schemes=rows.schemes, hosts=rows.hosts)

    def units(self) -> tuple[ListUnit, ...]:
        """Read the file once, and return one unit per range of lines.

        Raises:
            ValueError: if the file cannot be read, has no lines or is compressed.
        """
        root = directory_of(self.path) if self.image_root is None else self.image_root
        options = RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)
        reading = RowReading(columns=LINE_COLUMNS, image_root=root, options=options)
        with reading_errors(self.path):
            table = open_table(self.path, LINES[0])
            units = tuple(
                ListUnit(name=numbered_name(index), table=table, part=part, reading=reading)
                for index, part in enumerate(table.parts(self.samples_per_shard))
            )
        if not units:
            raise ValueError(f"{self.path} has no lines; expected one JSON object per line")
        return units


@sources.register("tables")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TableSource(Source):
    """Tables with an image, captions and a uid per row, such as DataComp metadata and img2dataset lists.

    A unit is a range of rows; the unit name is the file name with a number. Additional columns become metadata, except
    for dates, decimals and bytes. The tables may be untrusted, see `RowOptions`.

    Args:
        tables: paths or URLs of tables, brace patterns such as `metadata/{00000..00127}.parquet`, or one folder,
            including subfolders. Compressed files are not supported, except for Parquet's own compression.
        image_root: folder or URL at which relative image paths start; None for the folder of each table.
        samples_per_shard: number of rows per output shard.
        options: column names, and allowed files and servers.

    Raises:
        ValueError: if `samples_per_shard` is less than 1.
    """

    tables: tuple[str, ...] = attrs.field(converter=paths_of)
    image_root: str | None = attrs.field(default=None, converter=_optional_path)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    options: RowOptions = RowOptions()

    def allowing(self, rows: RowOptions) -> TableSource:
        """Return a copy of the source with the given row options."""
        return attrs.evolve(self, options=rows)

    def units(self) -> tuple[ListUnit, ...]:
        """Return one unit per range of rows; read only the footer of a Parquet file, but all of any other file.

        Raises:
            ValueError: if there are no tables or no rows, a table is unreadable or compressed, a table lacks a column
                in `options`, or the names of two tables differ only in the suffix.
            StorageError: if a store cannot be reached.
            ImportError: if Apache Arrow is not installed (extra `parquet`).
        """
        found = list(self._found())
        if not found:
            raise ValueError(f"there are no tables ({', '.join(TABLES)}) in {', '.join(self.tables)}")
        names: dict[str, str] = {}
        for name, path in found:
            if names.setdefault(_stem(name), path) != path:
                raise ValueError(
                    f"the names of {names[_stem(name)]} and {path} differ only in the suffix; rename a file"
                )
        calls = ((storage.is_remote(path), partial(self._units, name, path)) for name, path in found)
        units = tuple(unit for part in call_ahead(calls) for unit in part)
        if not units:
            raise ValueError(f"{', '.join(self.tables)} have no rows")
        return units

    def _found(self) -> Iterator[tuple[str, str]]:
        """Yield the name (relative to the folder) and the path of every table."""
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
        with reading_errors(path):
            table = open_table(path, suffix.lower(), header=self.options.header)
            columns = find_columns(table, self.options)
            is_inline = columns.path in table.images
            reading = RowReading(
                table=key_of_path(stem),
                columns=columns,
                image_root=directory_of(path) if self.image_root is None else self.image_root,
                options=self.options,
                held=columns.path if is_inline else None,
                class_names=table.class_names if is_inline else (),
            )
            parts = enumerate(table.parts(self.samples_per_shard))
            unit_name = printable_name(stem)
            return tuple(
                ListUnit(name=f"{unit_name}-{index:05d}.tar", table=table, part=part, reading=reading)
                for index, part in parts
            )


def is_table(path: str) -> bool:
    """Return whether a file has the suffix of a table."""
    return path.partition("?")[0].lower().endswith(TABLES)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - may be a URL
