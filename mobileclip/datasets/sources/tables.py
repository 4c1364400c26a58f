"""Tables of pairs as a source: `.parquet`, `.csv` and `.tsv` files, an image's path or address in every row."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from itertools import count, islice, takewhile
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.images.files import list_folder, printable_name
from mobileclip.data.shards.files import expand_shards
from mobileclip.data.skips import CONNECTION_FAILED, BadSampleError, Skip, made_or_skip
from mobileclip.datasets.sources.access import RowOptions, directory_of
from mobileclip.datasets.sources.base import Source, sources
from mobileclip.datasets.sources.columns import Columns, find_columns, record_of
from mobileclip.datasets.sources.delimited import CSV, TSV, Delimited, DelimitedRows
from mobileclip.datasets.sources.parquet import read_content, read_rows
from mobileclip.datasets.sources.records import Record, RecordUnit
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

TABLES = (".parquet", ".csv", ".tsv")
"""Suffixes of tables."""

_FORMS = {".csv": CSV, ".tsv": TSV}
_GZIP = b"\x1f\x8b"
_NUM_CONNECTIONS = 16


@attrs.frozen(kw_only=True)
class TableUnit(RecordUnit):
    """A range of rows.

    Args:
        table: the file's path without its suffix, relative to the source; what keys begin with that rows do not give.
        columns: which columns hold what.
        image_root: where relative image paths begin.
        options: what the rows may name.
        first_row: number of the first row, from 1.
        num_rows: number of rows.
    """

    table: str
    columns: Columns
    image_root: str
    options: RowOptions
    first_row: int
    num_rows: int

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, dict[str, Any] | BadSampleError]]:
        """Yield the rows with what they are called; those that cannot be read with the reason."""

    @abstractmethod
    def state(self) -> str:
        """Return a text that changes when the rows do."""

    def fingerprint(self) -> str:
        """Return a hash of the rows, and of sizes and times of change of the local images that they name."""
        digest = blake2b(os.fsencode(f"{self.state()} {self.columns} {self.image_root}"), digest_size=16)
        for record in self.records():
            if isinstance(record, Record) and not storage.is_remote(record.image):
                digest.update(_mark(record.image).encode())
        return digest.hexdigest()

    def count(self) -> int:
        """Return the number of rows."""
        return self.num_rows

    def records(self) -> Iterator[Record | Skip]:
        """Yield what every row says of a sample."""
        try:
            for number, (label, row) in enumerate(self.rows(), self.first_row):
                make = partial(self._record, row, label, f"{_key(self.table)}/{number:09d}")
                yield made_or_skip(make, key=label, shard=self.path)
        except OSError as error:
            raise_machine_fault(error)
            reason = CONNECTION_FAILED if storage.is_transient(error) else "unreadable_file"
            yield Skip(reason=reason, key="", shard=self.path, detail=f"rows from {self.first_row} on: {error}")

    def _record(self, row: dict[str, Any] | BadSampleError, label: str, key: str) -> Record:
        if isinstance(row, BadSampleError):
            raise row
        return record_of(row, label, key, columns=self.columns, root=self.image_root, options=self.options)


@attrs.frozen(kw_only=True)
class DelimitedUnit(TableUnit):
    """A range of rows of a `.csv` or `.tsv` file.

    Args:
        form: what stands between the cells.
        names: of the columns.
        start: byte at which the first row begins.
        first_line: number of its line, from 1.
        digest: of the lines.
    """

    form: Delimited
    names: tuple[str, ...]
    start: int
    first_line: int
    digest: str

    def state(self) -> str:
        """Return the hash of the lines, and which rows they are."""
        return f"{self.digest} {self.first_row}"

    def about(self) -> str:
        """Return a hash of the lines, and where their images are."""
        return f"{self.state()} {self.columns} {self.image_root}"

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | BadSampleError]]:
        """Yield the rows, called by the lines that they begin on."""
        with storage.open_read(self.path) as stream:
            stream.seek(self.start)
            for row in islice(DelimitedRows(stream, self.form, self.first_line), self.num_rows):
                label = f"line {row.line}"
                if row.problem is not None:
                    yield label, row.problem
                elif len(row.cells) != len(self.names):
                    detail = f"{label} has {len(row.cells)} cells, expected {len(self.names)}"
                    yield label, BadSampleError("bad_row", detail)
                else:
                    yield label, dict(zip(self.names, row.cells, strict=True))


@attrs.frozen(kw_only=True)
class ParquetUnit(TableUnit):
    """A range of rows of a `.parquet` file.

    Args:
        names: of the columns that are read.
    """

    names: tuple[str, ...]

    def state(self) -> str:
        """Return size and time of change of the file, or the store's mark, and which rows are meant.

        Raises:
            ValueError: if the file is gone.
        """
        try:
            return f"{storage.fingerprint(self.path)} {self.first_row} {self.num_rows}"
        except OSError as error:
            raise_machine_fault(error)
            if storage.is_transient(error):
                raise
            raise ValueError(f"{self.path} cannot be read: {error}") from None

    def files(self) -> tuple[str, ...]:
        """Return the table and the images that it names."""
        return (self.path, *super().files())

    def about(self) -> str:
        """Return which rows are meant, and where their images are; all that is known of a remote table."""
        state = self.state() if storage.is_remote(self.path) else f"{self.first_row} {self.num_rows}"
        return f"{state} {self.columns} {self.image_root}"

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | BadSampleError]]:
        """Yield the rows, called by their numbers."""
        read = read_rows(self.path, self.names, self.first_row - 1, self.num_rows)
        for number, row in enumerate(read, self.first_row):
            yield f"row {number}", row


def _tables(tables: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    tables = [tables] if isinstance(tables, (str, os.PathLike)) else tables
    return tuple(os.fspath(table) for table in tables)


def _optional_path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


@sources.register("tables")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TableSource(Source):
    """Tables of pairs, as DataComp's metadata and img2dataset's lists are: a row has an image, captions, and a uid.

    A unit is a range of rows. It is called like its file, relative to the folder, with a number. Cells that are no
    sample's own become metadata; columns of dates, decimals and bytes are left out. The tables may be a stranger's: see
    `RowOptions`.

    Args:
        tables: a table, a brace pattern such as `metadata/{00000..00127}.parquet`, several of them, or a folder, which
            is looked through with the folders below. Any of them may be an address. Not compressed, but for what
            Parquet compresses itself.
        image_root: where relative image paths begin; None for the folder of their table.
        samples_per_shard: rows that become one shard.
        options: which columns hold what, and what rows may name.

    Raises:
        ValueError: if a number is out of its range.
    """

    tables: tuple[str, ...] = attrs.field(converter=_tables)
    image_root: str | None = attrs.field(default=None, converter=_optional_path)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    options: RowOptions = RowOptions()

    def allowing(self, rows: RowOptions) -> TableSource:
        """Return the same tables, read in this way."""
        return attrs.evolve(self, options=rows)

    def units(self) -> tuple[TableUnit, ...]:
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
        if any(storage.is_remote(path) for _, path in found):
            with ThreadPoolExecutor(_NUM_CONNECTIONS, thread_name_prefix="tables") as pool:
                parts = list(pool.map(lambda table: self._units(*table), found))
        else:
            parts = [self._units(*table) for table in found]
        units = tuple(unit for part in parts for unit in part)
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
        # The folders that all of them lie in.
        levels = zip(*(folders for *folders, _ in parts), strict=False)
        num_above = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
        for path, names in zip(paths, parts, strict=True):
            yield "/".join(names[num_above:]), path

    def _units(self, name: str, path: str) -> tuple[TableUnit, ...]:
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - may be an address
        try:
            return tuple(self._parquet(name, path) if suffix == ".parquet" else self._delimited(name, path, suffix))
        except storage.StorageError:
            raise
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist") from None
        except OSError as error:
            raise_machine_fault(error)
            raise ValueError(f"{path} cannot be read: {error}") from None

    def _parquet(self, name: str, path: str) -> Iterator[ParquetUnit]:
        content = read_content(path)
        columns = find_columns(path, content.columns, self.options)
        for index, start in enumerate(range(0, content.num_rows, self.samples_per_shard)):
            yield ParquetUnit(
                name=_unit_name(name, index),
                path=path,
                table=_stem(name),
                columns=columns,
                image_root=directory_of(path) if self.image_root is None else self.image_root,
                options=self.options,
                first_row=start + 1,
                num_rows=min(self.samples_per_shard, content.num_rows - start),
                names=content.columns,
            )

    def _delimited(self, name: str, path: str, suffix: str) -> Iterator[DelimitedUnit]:
        form = _FORMS[suffix]
        with storage.open_read(path) as stream:
            if stream.read(2) == _GZIP:
                raise ValueError(f"{path} is compressed, so its rows cannot be found; decompress it first")
            stream.seek(0)
            rows = DelimitedRows(stream, form)
            names, start, line = _header(path, rows, self.options)
            columns = find_columns(path, names, self.options)
            first_row = 1
            for index in count():
                num_rows = num_bytes = num_lines = 0
                for row in islice(rows, self.samples_per_shard):
                    num_rows, num_bytes, num_lines = num_rows + 1, num_bytes + row.num_bytes, num_lines + row.num_lines
                if not num_rows:
                    return
                yield DelimitedUnit(
                    name=_unit_name(name, index),
                    path=path,
                    table=_stem(name),
                    columns=columns,
                    image_root=directory_of(path) if self.image_root is None else self.image_root,
                    options=self.options,
                    first_row=first_row,
                    num_rows=num_rows,
                    form=form,
                    names=names,
                    start=start,
                    first_line=line,
                    digest=rows.digest(),
                )
                first_row, start, line = first_row + num_rows, start + num_bytes, line + num_lines


def is_table(path: str) -> bool:
    """Return whether a file is a table by its name."""
    return path.partition("?")[0].lower().endswith(TABLES)


def _header(path: str, rows: DelimitedRows, options: RowOptions) -> tuple[tuple[str, ...], int, int]:
    """Return the names of the columns, and the byte and the line at which the rows begin."""
    if options.header:
        return options.header, 0, 1
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} is empty; expected a line with the names of the columns")
    if first.problem is not None:
        raise ValueError(f"the names of the columns of {path} cannot be read: {first.problem.detail}")
    rows.digest()
    return first.cells, first.num_bytes, 1 + first.num_lines


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - may be an address


def _unit_name(name: str, index: int) -> str:
    return f"{printable_name(_stem(name))}-{index:05d}.tar"


def _key(stem: str) -> str:
    """Return what keys begin with: dots separate a key from the extension, and `__` marks no sample."""
    text = printable_name(stem).replace(".", "_")
    return f"_{text.lstrip('_')}" if text.startswith("__") else text


def _mark(image: str) -> str:
    try:
        return storage.fingerprint(image)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        return "missing"
