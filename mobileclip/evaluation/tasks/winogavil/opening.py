"""WinoGAViL in the form in which it is published.

    winogavil/
        winogavil_dataset.csv     an instance a row: ID, cue, candidates and associations, two JSON lists of names
        winogavil_images.zip      an image of every candidate, winogavil_images/NAME.jpg; or that folder, unpacked

Source: Bitton et al. 2022 (arXiv 2207.12576); the columns and names of files are those of the data set
`nlphuji/winogavil` on the Hugging Face hub, where its licence has to be agreed to before it can be fetched.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence

import attrs

from mobileclip import storage
from mobileclip.datasets.sources.public_layout import files_of_page
from mobileclip.strict import parse_json

_MAX_TABLE_BYTES = 1 << 26
_COLUMNS = ("ID", "cue", "candidates", "associations")


@attrs.frozen(kw_only=True)
class WinoGavilInstance:
    """A cue, and what people made of it.

    Args:
        key: its number in the table.
        cue: a word, or a few.
        candidates: names of the images to choose from.
        associations: names of those that people chose for the cue.
    """

    key: str
    cue: str
    candidates: tuple[str, ...]
    associations: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the text tower reads."""
        cue = self.cue.lower()
        return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"

    @property
    def associated(self) -> tuple[bool, ...]:
        """Of every candidate whether people chose it."""
        return tuple(name in self.associations for name in self.candidates)


@attrs.frozen(kw_only=True)
class WinoGavil:
    """The data set, its images yet to be read.

    Args:
        instances: all of them.
        images: the zip file with the images, or their folder; path or address.
    """

    instances: tuple[WinoGavilInstance, ...]
    images: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all images, each once."""
        return tuple(dict.fromkeys(name for instance in self.instances for name in instance.candidates))


def open_winogavil(path: str | os.PathLike[str]) -> WinoGavil:
    """Return the data set, having read its table; images are read when they are asked for.

    Args:
        path: its folder, an address of one, or its page on the Hugging Face hub.

    Raises:
        ValueError: if the table or the images are missing, or a row is malformed; the message says which line.
        OSError: if a store cannot be reached.
    """
    root = files_of_page(os.fspath(path))
    table = storage.join(root, "winogavil_dataset.csv")
    try:
        text = storage.read_bytes(table, limit=_MAX_TABLE_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{table} is missing: the instances of WinoGAViL, one a row") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8: {error}") from None
    instances = tuple(_instances(table, text))
    if not instances:
        raise ValueError(f"{table} has no rows")
    return WinoGavil(instances=instances, images=_images(root))


def _images(root: str) -> str:
    packed = storage.join(root, "winogavil_images.zip")
    if storage.exists(packed):
        return packed
    folder = packed.removesuffix(".zip")
    if not storage.is_remote(root) and storage.is_directory(folder):
        return folder
    raise ValueError(f"{packed} is missing: the images of WinoGAViL; nor is there the folder winogavil_images")


def _instances(table: str, text: str) -> Iterator[WinoGavilInstance]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    keys: set[str] = set()
    try:
        _require_columns(rows.fieldnames or ())
        for row in rows:
            yield _instance(row, keys)
    except csv.Error as error:
        raise ValueError(f"{table} is no table after line {rows.line_num}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{table}, line {rows.line_num}: {error}") from None


def _require_columns(columns: Sequence[str]) -> None:
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise ValueError(f"there is no column {', '.join(missing)}; expected {', '.join(_COLUMNS)}")


def _instance(row: dict[str, str | None], keys: set[str]) -> WinoGavilInstance:
    key, cue = ((row[column] or "").strip() for column in ("ID", "cue"))
    if not cue:
        raise ValueError("there is no cue")
    if key in keys:
        raise ValueError(f"ID {key!r} comes twice")
    keys.add(key)
    instance = WinoGavilInstance(
        key=key,
        cue=cue,
        candidates=_names("candidates", row["candidates"]),
        associations=_names("associations", row["associations"]),
    )
    if not any(instance.associated):
        raise ValueError("none of the candidates is among the associations")
    return instance


def _names(column: str, stored: str | None) -> tuple[str, ...]:
    try:
        names = parse_json(stored or "")
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise ValueError(f"{column} holds {(stored or '')[:40]!r}, expected a JSON list of names of images")
    return tuple(names)


def _is_name(name: str) -> bool:
    """Return whether a file of a folder can be called so, and none elsewhere."""
    return bool(name.strip()) and "/" not in name and "\\" not in name and "\0" not in name
