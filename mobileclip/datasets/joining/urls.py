"""Reads image URLs from shards or tables, and writes a table of URLs for a downloader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import attrs

from mobileclip import storage
from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.data.samples.members import json_captions
from mobileclip.data.shards.files import RawSample, read_shard
from mobileclip.data.skips import CONNECTION_FAILED, BadSampleError, Skip, SkipReport, attempt
from mobileclip.datasets.joining.index import json_member
from mobileclip.datasets.sources import RowOptions, as_source
from mobileclip.datasets.sources.lists import ListUnit
from mobileclip.datasets.sources.shards import ShardUnit
from mobileclip.engines import Engine, FunctionWork, InlineEngine, OrderedResults, SetAside
from mobileclip.extras import needed
from mobileclip.progress import Progress
from mobileclip.terminal import console

SUFFIXES = (".parquet", ".csv")
"""Suffixes of supported tables."""

# Number of table rows to read at once.
_GROUP_ROWS = 100_000
_SHA256 = "sha256"

_Rows: TypeAlias = "tuple[list[UrlRow], list[Skip]]"


class UrlRow(NamedTuple):
    """The image URL, caption, uid and image hash of a sample; unknown values are empty strings."""

    url: str
    caption: str
    uid: str
    sha256: str


COLUMNS = UrlRow._fields


@attrs.frozen(kw_only=True)
class UrlReport:
    """The result of writing a table of URLs.

    Args:
        path: path of the table.
        num_rows: number of rows in the table.
        num_without: for each of the columns `caption` and `sha256`, the number of rows with an empty cell.
        skips: counts of skipped rows and unreadable inputs, by reason.
    """

    path: str
    num_rows: int
    num_without: Mapping[str, int]
    skips: SkipReport

    @property
    def is_good(self) -> bool:
        """Whether the table has rows, and all inputs were readable."""
        return self.num_rows > 0 and not self.skips.counts

    def __str__(self) -> str:
        lines = [f"{self.num_rows:,} rows in {self.path}"]
        lines += [f"  {count:,} without {column}" for column, count in self.num_without.items() if count]
        lines += [f"  {count:,} left out: {reason}" for reason, count in sorted(self.skips.counts.items())]
        return "\n".join(lines)


def write_urls(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
    engine: Engine | None = None,
    show_progress: bool = True,
) -> UrlReport:
    """Write a table of URLs, captions, uids and hashes for `img2dataset`, and return the report.

    From shards, the function reads `url.txt`, the caption, and the JSON fields `uid` and `sha256`. From tables and
    `.jsonl` files, the function reads the columns with these values. The function writes the table atomically.

    Args:
        data: shards, tables, a `.jsonl` file, or a folder of such files.
        output: path or URL of the table; the suffix `.parquet` or `.csv` determines the format.
        rows: column names, and allowed files and servers, for lists and tables.
        engine: engine that reads the data; None for this process. The table does not depend on the engine.
        show_progress: whether to show a progress bar.

    Raises:
        ValueError: if there is no data, the data has no URLs, or the suffix of the output is not supported.
        OSError: if the table cannot be written.
        ImportError: if Apache Arrow is not installed (extra `parquet`).
    """
    every = as_source(data, rows=rows, samples_per_shard=_GROUP_ROWS).units()
    units = [unit for unit in every if isinstance(unit, (ShardUnit, ListUnit))]
    if len(units) < len(every):
        raise ValueError(f"{data} has no URLs; expected tar shards, a .jsonl file, or tables (.parquet, .csv, .tsv)")
    skips, num_rows = SkipReport(log=False), 0
    num_without = {"caption": 0, _SHA256: 0}
    with (
        _table(os.fspath(output)) as write,
        Progress("reading URLs", total=len(units), console=console(shown=show_progress)) as progress,
    ):

        def take(unit: ShardUnit | ListUnit, result: _Rows | SetAside) -> None:
            nonlocal num_rows
            found, left_out = ([], []) if isinstance(result, SetAside) else result
            if isinstance(result, SetAside):
                left_out = [Skip(reason="unreadable_shard", key="", shard=unit.path, detail=result.reason)]
            write(found)
            num_rows += len(found)
            for column in num_without:
                num_without[column] += sum(not getattr(row, column) for row in found)
            skips.extend(left_out)
            progress.advance(count=len(found))

        with OrderedResults[ShardUnit | ListUnit, _Rows](units, take) as listener:
            (engine or InlineEngine(device="cpu")).run(FunctionWork(function=_rows_of), units, listener)
    return UrlReport(path=os.fspath(output), num_rows=num_rows, num_without=num_without, skips=skips)


def _rows_of(unit: ShardUnit | ListUnit) -> _Rows:
    """Return the rows of a unit, and skips of unusable rows.

    Raises:
        StorageError: if the remote store or disk with the unit's file fails.
    """
    skips, found = list[Skip](), list[UrlRow]()
    if isinstance(unit, ShardUnit):
        for raw in read_shard(unit.path, skips.append, unit.sample_limits):
            row = attempt(partial(_row_of_sample, raw), key=raw.key, shard=raw.shard, on_skip=skips.append)
            found += [] if row is None else [row]
        for skip in skips:
            if skip.reason == CONNECTION_FAILED:
                raise skip.error(skip.detail)
        return found, skips
    for record in unit.records():
        if isinstance(record, Skip):
            skips.append(record)
        elif (url := record.sample.url) is None:
            detail = f"{record.label} has no URL"
            skips.append(Skip(reason="missing_url", key=record.sample.key, shard=unit.path, detail=detail))
        else:
            sample, metadata = record.sample, record.sample.metadata
            sha256 = record.sha256 or _text(metadata.get(_SHA256))
            caption = next(iter(sample.captions), "")
            found.append(UrlRow(url, caption, str(metadata.get("uid", sample.key)), sha256))
    return found, skips


def _row_of_sample(raw: RawSample) -> UrlRow:
    if raw.problem is not None:
        raise raw.problem
    stated = json_member(raw.members.get("json"), SAMPLE_LIMITS)
    url = raw.members.get("url.txt", b"").decode().strip() or _text(stated.get("url"))
    if not url:
        raise BadSampleError("missing_url", "the sample has neither a url.txt nor a url in its JSON")
    caption = raw.members["txt"].decode() if "txt" in raw.members else next(iter(json_captions(stated)), "")
    return UrlRow(url=url, caption=caption, uid=_text(stated.get("uid")) or raw.key, sha256=_text(stated.get(_SHA256)))


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


@contextmanager
def _table(path: str) -> Iterator[Callable[[Sequence[UrlRow]], object]]:
    """Yield a function that writes rows to a table; the context replaces the table atomically at the end."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} cannot be written: the name must end with {' or '.join(SUFFIXES)}")
    with needed(f"the table {path}", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyarrow import csv
    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    storage.make_directory_of(path)
    with (
        storage.atomic_write(path) as stream,
        (pq.ParquetWriter if suffix == ".parquet" else csv.CSVWriter)(stream, schema) as writer,
    ):

        def write(rows: Sequence[UrlRow]) -> None:
            # img2dataset reads CSV with Arrow, which ends a row at every line break.
            rows = rows if suffix == ".parquet" else [UrlRow(*(" ".join(c.split()) for c in row)) for row in rows]
            if rows:
                writer.write_table(pa.Table.from_pylist([row._asdict() for row in rows], schema))

        yield write
