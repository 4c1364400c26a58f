"""Files of annotations, JSON in its forms and CSV, with errors that say which entry is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count, islice
from typing import Any, TypeVar

import attrs

from mobileclip import storage
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.tables import open_table
from mobileclip.strict import parse_json

_MAX_BYTES = 1 << 28
# A gigabyte of ShareGPT4V begins with a thousand entries in less than two megabytes.
_MAX_HEAD_BYTES = 1 << 24
_SEPARATORS = re.compile(r"[\s,]*")

Value = TypeVar("Value")


@attrs.frozen
class Entry:
    """One object, or row, of an annotation file.

    Args:
        where: the file and the entry, for messages.
        values: of the object.
        index: place, from 0, or key of the object in its file.
    """

    where: str
    values: Mapping[str, Any]
    index: int | str

    def get(self, name: str, read: Callable[[Any], Value | None], expected: str) -> Value:
        """Return a value as `read` reads it.

        Raises:
            ValueError: if it is missing, or `read` returns None.
        """
        value = None if name not in self.values else read(self.values[name])
        if value is None:
            there = repr(self.values[name])[:60] if name in self.values else "nothing"
            raise ValueError(f"{self.where}: {name} is {there}, expected {expected}")
        return value

    def text(self, name: str) -> str:
        """Return a text that is not blank."""
        return self.get(name, _text, "a text")

    def texts(self, name: str, expected: str, *, count: int | None = None) -> tuple[str, ...]:
        """Return a list of so many texts, or of one or more."""
        return self.get(name, partial(_texts, count=count), expected)

    def file(self, name: str) -> str:
        """Return the name of a file of a folder, or of those below it."""
        return self.get(name, file_name, "the name of a file")


def read_entries(path: str, title: str, *, num_first: int | None = None) -> Iterator[Entry]:
    """Yield the objects of a JSON list, the values of a JSON object, or the lines of a `.jsonl` or `.csv` file.

    Args:
        path: of the file, or its URL.
        title: whose annotations they are, for messages.
        num_first: how many objects to yield of a JSON list, of which only the beginning is read; None for all.

    Raises:
        ValueError: if there is no file, it has no entry, or it is something else.
        OSError: if a store cannot be reached.
    """
    try:
        if num_first is None:
            data = storage.read_bytes(path, limit=_MAX_BYTES)
        else:
            with storage.open_read(path) as stream:
                data = stream.read(_MAX_HEAD_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the annotations of {title}") from None
    is_empty = True
    found = _values(path, data) if num_first is None else islice(_first_values(path, data), num_first)
    for where, index, values in found:
        is_empty = False
        if not isinstance(values, dict):
            raise ValueError(f"{path}{where} is {str(values)[:60]!r}, expected an object")
        yield Entry(f"{path}{where}", values, index)
    if is_empty:
        raise ValueError(f"{path} holds no annotations, but {data[:60].decode(errors='replace')!r}")


def _first_values(path: str, data: bytes) -> Iterator[tuple[str, int, Any]]:
    """Yield what `_values` does of a JSON list, as far as its text goes."""
    text = data.decode(errors="ignore")
    decoder, position = json.JSONDecoder(), text.find("[") + 1
    for index in count() if position else ():
        position = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing as well
        if text[position : position + 1] in ("]", ""):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, entry {index} is no JSON: {error}") from None
        yield f", entry {index}", index, value


def _values(path: str, data: bytes) -> Iterator[tuple[str, int | str, Any]]:
    """Yield where each value is, its index and itself."""
    if path.endswith((".csv", ".jsonl")):
        for index, (_, label, values) in enumerate(open_table(path).rows()):
            if isinstance(values, BadSampleError):
                raise ValueError(f"{path}: {values.detail}")
            yield f", {label}", index, values
        return
    try:
        values = parse_json(data, max_characters=_MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    items = values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else ())
    yield from ((f", entry {index!r:.60}", index, value) for index, value in items)


def folder_or_zip(path: str, title: str) -> str:
    """Return a folder of images, or the zip file of the same name beside where it would be.

    On remote stores, a folder that is missing is found out with the first image.

    Raises:
        ValueError: if neither is there.
    """
    if storage.exists(f"{path}.zip"):
        return f"{path}.zip"
    if not storage.is_remote(path) and not storage.is_directory(path):
        raise ValueError(f"{path} is missing: the folder of the images of {title}")
    return path


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _texts(value: Any, *, count: int | None) -> tuple[str, ...] | None:
    there = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if there and count in (None, len(value)) else None


def file_name(value: Any) -> str | None:
    """Return the path of a file below the folder that it is relative to; None where it leads elsewhere."""
    name = _text(value)
    if name is None or any(mark in name for mark in "\\\0:") or {"", ".", ".."} & set(name.split("/")):
        return None
    return name
