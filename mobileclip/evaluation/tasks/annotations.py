"""Files of annotations, JSON in its forms, with errors that say which entry is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs

from mobileclip import storage
from mobileclip.strict import parse_json, split_lines

_MAX_JSON_BYTES = 1 << 28

Value = TypeVar("Value")


@attrs.frozen
class Entry:
    """One object of an annotation file.

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
        """Return a text that is not empty."""
        return self.get(name, _text, "a text")

    def file_name(self, name: str) -> str:
        """Return the name of a file of a folder, without its extension."""
        return self.get(name, _stem, "the name of a file")


def read_list(path: str, title: str) -> Iterator[Entry]:
    """Yield the objects of a JSON list.

    Args:
        path: of the file, or its address.
        title: whose annotations they are, for messages.

    Raises:
        ValueError: if there is no file, or it is something else.
        OSError: if a store cannot be reached.
    """
    entries = _read(path, title)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} holds no list of annotations, but {str(entries)[:60]!r}")
    for index, values in enumerate(entries):
        yield _entry(f"{path}, entry {index}", values, index)


def read_object(path: str, title: str) -> Iterator[Entry]:
    """Yield the objects that are the values of a JSON object; see `read_list`."""
    entries = _read(path, title)
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} holds no object of annotations, but {str(entries)[:60]!r}")
    for key, values in entries.items():
        yield _entry(f"{path}, entry {key[:60]!r}", values, key)


def read_lines(path: str, title: str) -> Iterator[Entry]:
    """Yield the objects of JSON lines; see `read_list`."""
    lines = split_lines(_text_of(path, title))
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                values = parse_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            yield _entry(f"{path}, line {number}", values, number - 1)


def require_folder(path: str, title: str) -> None:
    """Refuse a folder of images that is not there; on remote stores that is found out with the first image.

    Raises:
        ValueError: if there is none.
    """
    if not storage.is_remote(path) and not storage.is_directory(path):
        raise ValueError(f"{path} is missing: the folder of the images of {title}")


def folder_or_zip(path: str, title: str) -> str:
    """Return a folder of images, or the zip file of the same name beside where it would be.

    Raises:
        ValueError: if neither is there.
    """
    if storage.exists(f"{path}.zip"):
        return f"{path}.zip"
    require_folder(path, title)
    return path


def _entry(where: str, values: Any, index: int | str) -> Entry:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {str(values)[:60]!r}, expected an object")
    return Entry(where, values, index)


def _read(path: str, title: str) -> Any:
    text = _text_of(path, title)
    try:
        return parse_json(text, max_characters=_MAX_JSON_BYTES)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _text_of(path: str, title: str) -> str:
    try:
        return storage.read_bytes(path, limit=_MAX_JSON_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the annotations of {title}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _stem(value: Any) -> str | None:
    """Return the name of a file without what is behind its point; None where it leads elsewhere."""
    text = _text(value)
    if text is None or "/" in text or "\\" in text or "\0" in text:
        return None
    return text.rpartition(".")[0] or text
