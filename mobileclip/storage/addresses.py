"""Tells local paths from URLs, and finds the store that opens each."""

from __future__ import annotations

import os
import posixpath
import re
import urllib.parse
from pathlib import Path

from mobileclip.storage.backend import Backend

AnyPath = str | os.PathLike[str]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WEB = ("http", "https")


def is_remote(path: AnyPath) -> bool:
    """Return whether `path` is a URL, such as `s3://bucket/key`; `file://` ones are local."""
    return _scheme(path) not in ("", "file")


def is_web(path: AnyPath) -> bool:
    """Return whether `path` is a URL of a web server, which lists nothing."""
    return _scheme(path) in _WEB


def check_address(path: AnyPath) -> None:
    """Make sure that URLs of this kind can be opened here; nothing is connected to.

    Raises:
        ValueError: if nothing knows the kind, or a package is missing; the message says what to install.
    """
    if is_remote(path):
        backend_of(path).check(os.fspath(path))


def local_path(path: AnyPath) -> Path:
    """Return a local path, also where it is written as `file://`."""
    text = os.fspath(path)
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path) if _scheme(text) == "file" else text)


def join(base: AnyPath, name: str) -> str:
    """Return the path of a file below a directory."""
    return f"{os.fspath(base).rstrip('/')}/{name.lstrip('/')}" if is_remote(base) else str(local_path(base) / name)


def file_name(path: AnyPath) -> str:
    """Return the last part of a path, without the query of a web URL."""
    text = os.fspath(path)
    if is_web(text):
        text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    return posixpath.basename(text)


def is_same(one: AnyPath, other: AnyPath) -> bool:
    """Return whether two names mean the same place, links followed; nothing need be there."""
    if is_remote(one) or is_remote(other):
        return os.fspath(one) == os.fspath(other)
    return local_path(one).resolve() == local_path(other).resolve()


def backend_of(path: AnyPath) -> Backend:
    """Return the store of a URL."""
    if is_web(path):
        from mobileclip.storage.web import WebBackend

        return WebBackend()
    from mobileclip.storage.remote import FsspecBackend

    return FsspecBackend()


def _scheme(path: AnyPath) -> str:
    found = _SCHEME.match(os.fspath(path))
    return found[1].lower() if found else ""
