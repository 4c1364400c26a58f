"""Reads texts from text files, tables and shards, to train a text tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.data import read_samples
from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.datasets.sources.tables import LINES, TABLES, open_table, text_rows

MAX_TEXT = 10_000
"""Maximum number of characters per text; text towers read only a few hundred characters."""


@attrs.frozen(kw_only=True)
class TextPair:
    """A text for the student and the matching text for the teacher.

    Args:
        text: the student's text.
        teacher_text: the teacher's text: a translation of `text`, or a copy.
        language: language of `text`, such as `de`; empty if unknown.
    """

    text: str
    teacher_text: str
    language: str = ""


@attrs.frozen(kw_only=True)
class TextColumns:
    """The table columns with the student's text, the teacher's text and the language.

    Args:
        text: column of the student's text.
        teacher: column of the teacher's text; in rows without a teacher's text, the student's text replaces it.
        language: column of the language, such as `de`.
        default_language: language of rows without a language; empty if unknown.
    """

    text: str = "text"
    teacher: str = "teacher_text"
    language: str = "language"
    default_language: str = ""


def read_text_pairs(path: storage.AnyPath, columns: TextColumns | None = None) -> Iterator[TextPair | BadSampleError]:
    """Yield a text pair for every usable row of a file, in order, and an error for every other row.

    Files with the suffix `.jsonl`, `.ndjson`, `.parquet`, `.csv` or `.tsv` are tables; CSV and TSV files need a header.
    In a `.tar` shard, all real and synthetic captions are texts. In any other file, every line is a text.

    Args:
        path: path or URL of the file; for shards, also a pattern, see `mobileclip.data.expand_shards`.
        columns: column names of a table; None for the default names.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the table lacks the column of the student's text, or the file is compressed.
        ImportError: if the file is a table, and Apache Arrow is not installed (extra `parquet`).
    """
    columns = TextColumns() if columns is None else columns
    suffix = "." + storage.file_name(path).rpartition(".")[2].lower()
    if suffix in (*LINES, *TABLES):
        found = _rows(str(path), columns)
    else:
        found = _captions(str(path), columns) if suffix == ".tar" else _lines(path, columns)
    for number, row in enumerate(found, 1):
        if isinstance(row, BadSampleError):
            yield BadSampleError(row.reason, f"{row.detail}, in {path}")
        else:
            yield _pair(row, columns, f"row {number} of {path}")


def _pair(row: Mapping[str, Any], columns: TextColumns, label: str) -> TextPair | BadSampleError:
    text = row.get(columns.text)
    teacher_text, language = row.get(columns.teacher) or text, row.get(columns.language) or columns.default_language
    if not isinstance(text, str) or not text.strip():
        return BadSampleError("no_text", f"{label} has no text in the column {columns.text!r}")
    if not isinstance(teacher_text, str) or not isinstance(language, str):
        return BadSampleError("bad_row", f"{label} has a teacher text or language that is not a string")
    pair = TextPair(text=text.strip(), teacher_text=teacher_text.strip(), language=language.strip())
    if max(len(pair.text), len(pair.teacher_text)) > MAX_TEXT:
        return BadSampleError("text_too_long", f"{label} has a text of more than {MAX_TEXT:,} characters")
    return pair


def _rows(path: str, columns: TextColumns) -> Iterator[dict[str, Any] | BadSampleError]:
    table = open_table(path)
    wanted = [name for name in (columns.text, columns.teacher, columns.language) if name in table.columns]
    if table.suffix in TABLES and columns.text not in wanted:
        raise ValueError(
            f"{path} has no column {columns.text!r}; the columns are {', '.join(map(repr, table.columns)) or 'none'}; "
            "name the column with the texts"
        )
    for _, _, cells in table.rows(columns=wanted):
        yield cells


def _lines(path: storage.AnyPath, columns: TextColumns) -> Iterator[dict[str, Any] | BadSampleError]:
    open_table(str(path), ".txt")  # raises an error for compressed files
    with storage.open_read(path) as stream:
        for row in text_rows(stream, ".txt"):
            content = row.content
            yield {columns.text: content.decode("utf-8", errors="replace")} if isinstance(content, bytes) else content


def _captions(shards: str, columns: TextColumns) -> Iterator[dict[str, Any] | BadSampleError]:
    """Yield each caption of the shards as a row, then an error for each skipped sample."""
    report = SkipReport()
    for sample in read_samples(shards, report):
        for caption in chain(sample.captions, *sample.syn_captions.values()):
            yield {columns.text: caption}
    for reason, count in report.counts.items():
        yield from repeat(BadSampleError(reason, f"a sample of {shards} was skipped"), count)
