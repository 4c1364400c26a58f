"""Lists of pairs as sources: `.jsonl`, `.parquet`, `.csv` and `.tsv` files with a sample a row.

What differs between them are the rows (`text_rows.py`, `parquet.py`) and what a row says of a sample (`columns.py`).
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.images.files import list_folder, printable_name
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import expand_shards, paths_of
from mobileclip.data.skips import CONNECTION_FAILED, BadSampleError, Skip, SkipReport, made_or_skip
from mobileclip.datasets.sources.access import SCHEMES, RowOptions, directory_of, num_common, told
from mobileclip.datasets.sources.base import Source, Unit, numbered_name, sources
from mobileclip.datasets.sources.columns import LineReading, Reading, TableReading, find_columns
from mobileclip.datasets.sources.parquet import read_content, read_rows
from mobileclip.datasets.sources.records import Record, called_ahead, key_of_path, read_records
from mobileclip.datasets.sources.text_rows import CSV, JSON, TSV, Part, TextForm, TextRows, check_plain
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

LINES = (".jsonl", ".ndjson")
TABLES = (".parquet", ".csv", ".tsv")
"""Suffixes of tables."""

_FORMS = {".csv": CSV, ".tsv": TSV}


@attrs.frozen(kw_only=True)
class ListUnit(Unit):
    """A range of rows of a list.

    Args:
        path: of the list.
        reading: what a row says of a sample.
    """

    path: str
    reading: Reading

    @abstractmethod
    def rows(self, *, images: bool = False) -> Iterator[tuple[int, str, dict[str, Any] | BadSampleError]]:
        """Yield the rows: what keys are made of, what messages call it, and its cells or why it cannot be read.

        Args:
            images: whether those are read that the list holds.
        """

    @abstractmethod
    def state(self) -> str:
        """Return a text that changes when the rows do."""

    def about(self) -> str:
        """Return what changes with the rows and with where their images are."""
        with told(self.path):
            return self.reading.about(self.state())

    def fingerprint(self) -> str:
        """Return a hash of the rows, and of sizes and times of change of the local images that they name."""
        with told(self.path):
            digest = blake2b(os.fsencode(self.reading.about(self.state())), digest_size=16)
            if not storage.is_remote(self.reading.image_root):
                for number, label, cells in self.rows():
                    digest.update(self.reading.mark(cells, number, label).encode())
        return digest.hexdigest()

    def records(self, *, images: bool = False) -> Iterator[Record | Skip]:
        """Yield what every row says of a sample, or why it cannot be used; no image is looked for.

        Args:
            images: whether those are read that the list holds.
        """
        try:
            for number, label, cells in self.rows(images=images):
                make = partial(self.reading.record, cells, number, label)
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
        """Return the images that the list names."""
        return tuple(one.image for one in self.records() if isinstance(one, Record) and not one.is_held)

    def described(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples without their images, which are not looked for."""
        for record in self.records():
            if isinstance(record, Skip):
                report.add(record)
            else:
                yield record.sample


@attrs.frozen(kw_only=True)
class TextUnit(ListUnit):
    """A range of rows of a text file.

    Args:
        form: what a row is.
        names: of the columns; none of JSON lines.
        part: which rows.
    """

    form: TextForm
    names: tuple[str, ...] = ()
    part: Part

    def state(self) -> str:
        """Return the hash of the lines, and which rows of a table they are."""
        return self.part.digest if self.form == JSON else f"{self.part.digest} {self.part.first_row}"

    def count(self) -> int:
        """Return the number of rows."""
        return self.part.num_rows

    def rows(self, *, images: bool = False) -> Iterator[tuple[int, str, dict[str, Any] | BadSampleError]]:
        """Yield the rows, called by the lines that they begin on."""
        del images  # no text holds one
        with storage.open_read(self.path) as stream:
            stream.seek(self.part.start)
            rows = islice(TextRows(stream, self.form, self.part.first_line), self.part.num_rows)
            for number, row in enumerate(rows, self.part.first_row):
                yield row.line if self.form == JSON else number, f"line {row.line}", row.named(self.names)


@attrs.frozen(kw_only=True)
class ParquetUnit(ListUnit):
    """A range of rows of a `.parquet` file.

    Args:
        names: of the columns that are read.
        held: the column with images, where the table holds them.
        first_row: number of the first row, from 1.
        num_rows: number of rows.
    """

    names: tuple[str, ...]
    held: str | None
    first_row: int
    num_rows: int

    def state(self) -> str:
        """Return size and time of change of the file, or the store's mark, and which rows are meant."""
        return f"{storage.fingerprint(self.path)} {self.first_row} {self.num_rows}"

    def files(self) -> tuple[str, ...]:
        """Return the table and the images that it names."""
        return (self.path, *super().files())

    def about(self) -> str:
        """Return which rows are meant, and where their images are; all that is known of a remote table."""
        is_near = not storage.is_remote(self.path)
        return self.reading.about(f"{self.first_row} {self.num_rows}") if is_near else super().about()

    def count(self) -> int:
        """Return the number of rows."""
        return self.num_rows

    def rows(self, *, images: bool = False) -> Iterator[tuple[int, str, dict[str, Any] | BadSampleError]]:
        """Yield the rows, called by their numbers."""
        found = read_rows(self.path, self.names, self.first_row - 1, self.num_rows, held=self.held, images=images)
        for number, cells in enumerate(found, self.first_row):
            yield number, f"row {number}", cells


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

    def units(self) -> tuple[TextUnit, ...]:
        """Return ranges of lines; the file is read once, to find them.

        Raises:
            ValueError: if the file cannot be read, has no lines or is compressed.
        """
        root = directory_of(self.path) if self.image_root is None else self.image_root
        options = RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)
        reading = LineReading(image_root=root, options=options)
        with told(self.path), storage.open_read(self.path) as stream:
            check_plain(self.path, stream)
            parts = TextRows(stream, JSON).parts(self.samples_per_shard)
            units = tuple(
                TextUnit(name=numbered_name(index), path=self.path, reading=reading, form=JSON, part=part)
                for index, part in enumerate(parts)
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
            ImportError: if there is a Parquet file and Apache Arrow is not installed (extra `parquet`).
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
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - may be a URL
        with told(path):
            return tuple(self._parquet(name, path) if suffix == ".parquet" else self._text(name, path, _FORMS[suffix]))

    def _parquet(self, name: str, path: str) -> Iterator[ParquetUnit]:
        content = read_content(path)
        reading = self._reading(name, path, (*content.columns, *content.images), content.images)
        held = reading.columns.path if reading.columns.path in content.images else None
        if held is not None:
            reading = attrs.evolve(reading, class_names=content.class_names, holds_images=True)
        size = self.samples_per_shard
        for index, start in enumerate(range(0, content.num_rows, size)):
            yield ParquetUnit(
                name=_unit_name(name, index),
                path=path,
                reading=reading,
                names=content.columns if held is None else (*content.columns, held),
                held=held,
                first_row=start + 1,
                num_rows=min(size, content.num_rows - start),
            )

    def _text(self, name: str, path: str, form: TextForm) -> Iterator[TextUnit]:
        with storage.open_read(path) as stream:
            check_plain(path, stream)
            rows = TextRows(stream, form)
            names, start, line = self.options.header, 0, 1
            if not names:
                first = rows.header(path)
                names, start, line = tuple(first.cells), first.num_bytes, 1 + first.num_lines
            reading = self._reading(name, path, names)
            for index, part in enumerate(rows.parts(self.samples_per_shard, start=start, first_line=line)):
                yield TextUnit(
                    name=_unit_name(name, index), path=path, reading=reading, form=form, names=names, part=part
                )

    def _reading(self, name: str, path: str, names: tuple[str, ...], images: tuple[str, ...] = ()) -> TableReading:
        return TableReading(
            table=key_of_path(_stem(name)),
            columns=find_columns(path, names, self.options, images),
            image_root=directory_of(path) if self.image_root is None else self.image_root,
            options=self.options,
        )


def is_table(path: str) -> bool:
    """Return whether a file is a table by its name."""
    return path.partition("?")[0].lower().endswith(TABLES)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - may be a URL


def _unit_name(name: str, index: int) -> str:
    return f"{printable_name(_stem(name))}-{index:05d}.tar"
