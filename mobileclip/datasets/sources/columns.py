"""What the columns of a table hold, and what a row of it says of a sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.data.samples.members import json_captions
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.access import RowOptions, locate, without_user
from mobileclip.datasets.sources.records import Record, key_of
from mobileclip.strict import repeated

# As img2dataset, DataComp, LAION and open_clip call them.
PATHS = ("path", "image_path", "filepath", "file_name", "image")
URLS = ("url", "image_url")
CAPTIONS = ("caption", "captions", "text", "texts", "title")
UIDS = ("uid",)
KEYS = ("key",)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Columns:
    """Names of the columns that are a sample's own; None where a table has none.

    Args:
        path: of the images' paths.
        url: of the images' addresses.
        captions: of the captions.
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
        """All of them."""
        return frozenset(filter(None, (self.path, self.url, *self.captions, self.uid, self.key, self.sha256)))


def find_columns(table: str, names: Sequence[str], options: RowOptions) -> Columns:
    """Return which columns of a table hold what.

    Args:
        table: its path, for messages.
        names: of all its columns.
        options: what a person named.

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
    # Who names one of the two wants no other.
    path = None if options.path_column is None and options.url_column is not None else named(options.path_column, PATHS)
    url = named(options.url_column, URLS)
    if path is None and url is None:
        raise ValueError(
            f"nothing says which column of {table} has the images' paths or addresses; name one in `path_column` or "
            f"`url_column` (--path-column, --url-column) of {_listed(names)}{_no_header(options)}"
        )
    if not captions:
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


def record_of(
    row: Mapping[str, Any], label: str, key: str, *, columns: Columns, root: str, options: RowOptions
) -> Record:
    """Return what a row says of a sample.

    Args:
        row: cells by column.
        label: what the row is called.
        key: of the sample, where the row gives none.
        columns: which of them hold what; the others are metadata.
        root: where relative paths begin.
        options: what may be named.

    Raises:
        BadSampleError: if it cannot be used.
    """
    path, url = _text(row, columns.path, label), _text(row, columns.url, label)
    image = path or url
    if not image:
        raise BadSampleError("missing_image", f"{label} has neither a path nor an address of an image")
    uid = _optional(row, columns.uid)
    given = _optional(row, columns.key)
    captions = [text for name in columns.captions for text in _several(row[name])]
    metadata = {name: value for name, value in row.items() if name not in columns.names}
    if uid is not None:
        metadata["uid"] = str(uid)
    if storage.is_remote(image):
        url = without_user(image)
    else:
        metadata["image"] = image
    return Record(
        sample=ImageTextSample(
            key=key_of(uid if given is None else given, key),
            captions=json_captions({"captions": captions}),
            url=url or None,
            metadata=metadata,
        ),
        image=locate(image, root, options),
        label=label,
        hosts=options.hosts,
        sha256=_hash(row, columns.sha256, label),
    )


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
