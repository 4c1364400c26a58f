"""Reads samples from the rows of lists: fields of JSON lines, and columns of tables."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.data.samples.members import json_captions
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.access import RowOptions, locate, without_user
from mobileclip.datasets.sources.base import TEMPLATES
from mobileclip.datasets.sources.parquet import LABEL
from mobileclip.datasets.sources.records import Record, key_of
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import repeated

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
    """Names of the columns that are a sample's own; None where a table has none.

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


def find_columns(table: str, names: Sequence[str], options: RowOptions, images: Sequence[str] = ()) -> Columns:
    """Return the columns of a table that hold images, captions, uids, keys and hashes.

    Args:
        table: its path, for messages.
        names: of all its columns.
        options: what a person named.
        images: those with images.

    Raises:
        ValueError: if a column that was named is missing, two have one name, or nothing says where images or captions
            are.
    """
    if twice := repeated(names):
        raise ValueError(f"{table} has two columns called {twice[0][:80]!r}; rename one")

    def named(given: str | None, usual: Sequence[str]) -> str | None:
        if given is not None:
            if given not in names:
                raise ValueError(f"{table} has no column {given!r}; it has {_listed(names)}")
            return given
        lower = {name.lower(): name for name in reversed(names)}
        return next((lower[name] for name in usual if name in lower), None)

    captions = tuple(filter(None, (named(name, ()) for name in options.caption_columns))) or tuple(
        filter(None, (named(None, CAPTIONS),))
    )
    held = next(iter([*(name for name in PATHS if name in images), *images]), None)
    # Who names one of the two wants no other.
    wants_url = options.path_column is None and options.url_column is not None
    path = None if wants_url else named(options.path_column or held, PATHS)
    url = named(options.url_column, URLS)
    path = named(None, LAST_PATHS) if path is None and url is None else path
    if path is None and url is None:
        raise ValueError(
            f"nothing says which column of {table} has the images' paths or URLs; name one in `path_column` or "
            f"`url_column` (--path-column, --url-column) of {_listed(names)}{_no_header(options)}"
        )
    if not captions and not (path in images and LABEL in names):
        raise ValueError(
            f"nothing says which column of {table} has captions; name one in `caption_columns` (--caption-columns) of "
            f"{_listed(names)}{_no_header(options)}"
        )
    return Columns(
        path=path,
        url=url,
        captions=captions,
        uid=named(options.uid_column, UIDS),
        key=named(options.key_column, KEYS),
        sha256=named(options.hash_column, ()),
    )


@attrs.frozen(kw_only=True)
class Reading(ABC):
    """Interface that makes samples of a list's rows.

    Args:
        image_root: where relative image paths begin.
        options: what the rows may name.
    """

    image_root: str
    options: RowOptions

    @abstractmethod
    def record(self, cells: dict[str, Any] | BadSampleError, number: int, label: str) -> Record:
        """Return the sample of a row, and where its image is.

        Args:
            cells: of the row, or why it cannot be read.
            number: what the key is made of, where the row gives none.
            label: what the row is called.

        Raises:
            BadSampleError: if it cannot be used.
        """

    @abstractmethod
    def mark(self, cells: dict[str, Any] | BadSampleError, number: int, label: str) -> str:
        """Return what tells the state of the local image that a row names, if it names one."""

    def about(self, state: str) -> str:
        """Return a text that changes with the state of rows and with how they are read."""
        return f"{state} {self.image_root}"

    def _located(self, image: str) -> str:
        return locate(image, self.image_root, self.options)


@attrs.frozen(kw_only=True)
class LineReading(Reading):
    """Makes samples of JSON lines."""

    def record(self, cells: dict[str, Any] | BadSampleError, number: int, label: str) -> Record:
        """Return the sample of a line, see `Reading`."""
        if isinstance(cells, BadSampleError):
            raise cells
        fields = {**cells}
        image = fields.pop("image", None)
        if not isinstance(image, str) or not image:
            raise BadSampleError("missing_image", f"{label} has no `image`, a path or a URL")
        url: Any = None
        if storage.is_remote(image):
            url = without_user(image)
        elif isinstance(fields.get("url"), str):
            url = fields.pop("url")
        key = key_of(fields.pop("key", None), f"{number:09d}")
        captions = json_captions(fields)
        metadata = {name: value for name, value in fields.items() if name not in CAPTION_FIELDS}
        if not storage.is_remote(image):
            metadata["image"] = image
        sample = ImageTextSample(key=key, captions=captions, url=url, metadata=metadata)
        return Record(sample=sample, image=self._located(image), label=label, hosts=self.options.hosts)

    def mark(self, cells: dict[str, Any] | BadSampleError, number: int, label: str) -> str:
        """Return the state of the image that a line names, also where it says nothing else, see `Reading`."""
        del number, label  # what it is called says nothing of its image
        if isinstance(cells, BadSampleError):
            return _MISSING
        image = cells.get("image")
        try:
            return "" if not isinstance(image, str) or storage.is_remote(image) else _mark(self._located(image))
        except BadSampleError:
            return _MISSING


@attrs.frozen(kw_only=True)
class TableReading(Reading):
    """Makes samples of a table's rows.

    Args:
        table: what keys begin with that rows do not give.
        columns: which columns hold what; the others are metadata.
        class_names: of a `label` that is a number, where the table holds the images.
        holds_images: whether it does.
    """

    table: str
    columns: Columns
    class_names: tuple[str, ...] = ()
    holds_images: bool = False

    def about(self, state: str) -> str:
        """Return a text that changes with the state of rows and with how they are read."""
        return f"{state} {self.columns} {self.image_root}"

    def record(self, cells: dict[str, Any] | BadSampleError, number: int, label: str) -> Record:
        """Return the sample of a row, see `Reading`."""
        if isinstance(cells, BadSampleError):
            raise cells
        columns, row = self.columns, {**cells}
        held = row[columns.path or ""] if self.holds_images else None
        if held is not None:
            row[columns.path or ""] = held["path"]
            self._name_label(row, label)
        path, url = _text(row, columns.path, label), _text(row, columns.url, label)
        # What a table says of where an image came from is not opened where the image is in the table.
        is_held = held is not None and held.get("bytes", b"") is not None
        image = path or ("" if is_held else url) or ""
        if not image and not is_held:
            raise BadSampleError("missing_image", f"{label} has neither a path nor a URL of an image")
        uid, given = _optional(row, columns.uid), _optional(row, columns.key)
        captions = [text for name in columns.captions for text in _several(row[name])]
        if not columns.captions and isinstance(row[LABEL], str):
            captions = [template.replace("{}", row[LABEL]) for template in TEMPLATES]
        metadata = {name: value for name, value in row.items() if name not in columns.names}
        if uid is not None:
            metadata["uid"] = str(uid)
        if storage.is_remote(image):
            url = without_user(image)
        elif image:
            metadata["image"] = image
        return Record(
            sample=ImageTextSample(
                key=key_of(uid if given is None else given, f"{self.table}/{number:09d}"),
                captions=json_captions({"captions": captions}),
                url=url or None,
                metadata=metadata,
            ),
            image=image if is_held else self._located(image),
            label=label,
            hosts=self.options.hosts,
            sha256=_hash(row, columns.sha256, label),
            is_held=is_held,
            data=held.get("bytes") if held is not None else None,
        )

    def mark(self, cells: dict[str, Any] | BadSampleError, number: int, label: str) -> str:
        """Return the state of the image of a row that can be used, see `Reading`."""
        try:
            record = self.record(cells, number, label)
        except BadSampleError:
            return ""
        return "" if record.is_held or record.is_remote else _mark(record.image)

    def _name_label(self, row: dict[str, Any], label: str) -> None:
        """Give the class of a row its name."""
        number = row.get(LABEL)
        if not self.class_names or not isinstance(number, int):
            return
        if not 0 <= number < len(self.class_names):
            classes = len(self.class_names)
            raise BadSampleError("bad_label", f"{label} has the label {number}, but there are {classes} classes")
        row[LABEL] = self.class_names[number]


def _mark(image: str) -> str:
    try:
        return storage.fingerprint(image)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        return _MISSING


def _optional(row: Mapping[str, Any], name: str | None) -> object:
    """Return a cell, or None where it is empty."""
    value = None if name is None else row[name]
    return None if value == "" else value


def _text(row: Mapping[str, Any], name: str | None, label: str) -> str | None:
    value = _optional(row, name)
    if value is not None and not isinstance(value, str):
        raise BadSampleError("missing_image", f"{label} has {type(value).__name__} as {name!r}, expected a text")
    return value


def _several(value: Any) -> Sequence[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _hash(row: Mapping[str, Any], name: str | None, label: str) -> str | None:
    value = _optional(row, name)
    if value is None:
        return None
    if not isinstance(value, str) or not _SHA256.fullmatch(value.lower()):
        detail = f"{label} has {str(value)[:80]!r} as {name!r}, expected a SHA-256 in hexadecimal"
        raise BadSampleError("bad_hash", detail)
    return value.lower()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _no_header(options: RowOptions) -> str:
    return "" if options.header else "; a file whose first line has no names needs `header` (--header)"
