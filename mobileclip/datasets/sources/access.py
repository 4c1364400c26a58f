"""Which files and URLs the rows of a list may name; the default is safe for a stranger's list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import attrs

from mobileclip import storage
from mobileclip.data.skips import BadSampleError
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

SCHEMES = ("http", "https")
"""Of URLs that anyone's file may name."""

_WEB = ("http://", "https://")


@attrs.frozen(kw_only=True, field_transformer=strict)
class RowOptions:
    """How the rows of `.jsonl` files and of tables (`.parquet`, `.csv`, `.tsv`) are read.

    Where no column is named, the first of the usual names that a table has is taken, whatever its case.

    Args:
        inside: images on this machine must lie below the folder of the file; otherwise its rows name any file.
        schemes: URL schemes that rows may use, such as `https` and `s3`.
        hosts: web servers that rows may name although they are at no public address, such as `127.0.0.1`.
        path_column: column of a table with the images' paths, relative to the table's folder.
        url_column: column of a table with the images' URLs, fetched where a row has no path.
        caption_columns: columns of a table with captions, one or a list of them in a cell.
        uid_column: column of a table with the samples' uids, as DataComp names its samples.
        key_column: of a table: the column with the samples' keys; where there is none, the uid is the key, or the name
            of the table with the number of the row.
        hash_column: of a table: the column with the SHA-256 of the images; one that has another is left out. It is not
            looked for where none is named, as it may be that of an image before it was resized.
        header: of a `.csv` or `.tsv` file whose first line has no names: the names of its columns, in their order.
    """

    inside: bool = True
    schemes: tuple[str, ...] = SCHEMES
    hosts: tuple[str, ...] = ()
    path_column: str | None = None
    url_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    uid_column: str | None = None
    key_column: str | None = None
    hash_column: str | None = None
    header: tuple[str, ...] = ()

    @property
    def names_columns(self) -> bool:
        """Whether anything is said of a table's columns."""
        return self != RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)


def locate(image: str, root: str, options: RowOptions) -> str:
    """Return where an image that a row names is, if it may be read.

    Args:
        image: a path or a URL.
        root: where relative paths begin.
        options: what may be named.

    Raises:
        BadSampleError: with the reason `refused_address`.
    """
    if storage.is_remote(image):
        scheme = image.partition("://")[0].lower()
        if scheme not in options.schemes:
            raise _refused(image, f"is opened by {scheme}://", f"name {scheme} in `schemes` (--schemes)")
    if "::" in image and (storage.is_remote(image) or storage.is_remote(root)) and not image.startswith(_WEB):
        raise _refused(image, "is a URL within a URL")
    if storage.is_remote(image):
        return image
    path = image if storage.is_remote(root) else os.fspath(storage.local_path(image))
    if options.inside and not _is_inside(root, path):
        raise _refused(image, f"is not below {root}", "pass `inside=False` (--no-inside)")
    return storage.join(root, path)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn errors of reading into a `ValueError`; transient errors and those of the machine pass."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{what} does not exist") from None
    except OSError as error:
        raise_machine_fault(error)
        if storage.is_transient(error):
            raise
        raise ValueError(f"{what} cannot be read: {error}") from None


def num_common(paths: Iterable[Sequence[str]]) -> int:
    """Return how many parts, from the first on, all paths have."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def directory_of(path: str) -> str:
    """Return the folder, or the URL, that a file lies in."""
    if storage.is_remote(path):
        return path.partition("?")[0].rpartition("/")[0]
    return os.fspath(storage.local_path(path).parent)


def without_user(address: str) -> str:
    """Return a URL without user and password; its query may be what tells one image from another."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _is_inside(root: str, path: str) -> bool:
    """Return whether a path leads below a folder, by its name; where links lead is up to whoever made them."""
    if storage.is_remote(root):
        return ".." not in path.split("/")
    top = Path(os.path.abspath(storage.local_path(root)))  # noqa: PTH100 - links stay links
    return Path(os.path.normpath(top / path)).is_relative_to(top)


def _refused(image: str, what: str, advice: str = "") -> BadSampleError:
    trust = f"; if you trust the file, {advice}" if advice else ""
    return BadSampleError("refused_address", f"{image[:300]} {what}{trust}")
