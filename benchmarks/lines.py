"""Results as lines of JSON, in a file that a later run goes on with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from mobileclip.serialization import from_json, to_json
from mobileclip.storage import atomic_write

T = TypeVar("T")


def read_lines(path: Path, cls: type[T]) -> list[T]:
    """Return what a file holds; nothing where there is none.

    Args:
        path: of the file.
        cls: of a line.

    Raises:
        ValueError: if it is no such file.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_read(text, cls, f"{path}, line {number}") for number, text in enumerate(lines, start=1)]


def _read(text: str, cls: type[T], place: str) -> T:
    try:
        return from_json(text, cls)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; remove the file, or choose another --output") from error


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """Write a file anew, whole or not at all."""
    with atomic_write(path) as file:
        for line in lines:
            file.write(f"{to_json(line)}\n".encode())
