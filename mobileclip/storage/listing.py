"""What lies in a directory, on this machine or in a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mobileclip.storage.addresses import AnyPath, backend_of, is_remote, join, local_path
from mobileclip.storage.backend import Info, attempt


def list_files(directory: AnyPath, suffix: str = "", *, recursive: bool = False) -> tuple[str, ...]:
    """Return the paths of the files in a directory, sorted; none where there is no such directory.

    Args:
        directory: path or address.
        suffix: of the files' names.
        recursive: with those in the directories below.

    Raises:
        OSError: if it cannot be listed.
        ValueError: if the address is a web server's, which lists nothing.
    """
    names = sorted(name for name in find_files(directory, recursive=recursive) if name.endswith(suffix))
    return tuple(join(directory, name) for name in names)


def find_files(
    directory: AnyPath, *, recursive: bool = True, passed_over: Callable[[str, str], None] | None = None
) -> dict[str, str]:
    """Return the fingerprints of the files in a directory, by their names relative to it, with `/` between parts.

    Args:
        directory: path or address.
        recursive: with those in the directories below; links to directories are not followed.
        passed_over: called with the name of everything else that is there, and with what it is: `linked_folder`,
            `broken_link` or `special_file`.

    Raises:
        OSError: if it cannot be listed.
        ValueError: if the address is a web server's, which lists nothing.
    """
    found = _find(directory, passed_over, recursive=recursive)
    return {name: info.fingerprint for name, info in found.items()}


def find_sizes(directory: AnyPath) -> dict[str, int | None]:
    """Return the bytes of the files that lie in a directory itself, by name; None where a store does not say.

    A store is asked once for a thousand files, or how many it lists at once.

    Args:
        directory: path or address.

    Raises:
        OSError: if it cannot be listed.
        ValueError: if the address is a web server's, which lists nothing.
    """
    return {name: info.size for name, info in _find(directory, None, recursive=False).items()}


def _find(directory: AnyPath, passed_over: Callable[[str, str], None] | None, *, recursive: bool) -> dict[str, Info]:
    if is_remote(directory):
        return attempt(lambda: backend_of(directory).find(os.fspath(directory), recursive=recursive))
    top = local_path(directory)
    return dict(_walk(top, passed_over, recursive=recursive)) if top.is_dir() else {}


def _walk(top: Path, passed_over: Callable[[str, str], None] | None, *, recursive: bool) -> Iterator[tuple[str, Info]]:
    waiting = [(top, "")]
    while waiting:
        directory, prefix = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                kind = _kind(entry)
                if kind == "folder":
                    if recursive:
                        waiting.append((Path(entry.path), f"{name}/"))
                elif kind == "file":
                    status = entry.stat()
                    yield name, Info(size=status.st_size, version=str(status.st_mtime_ns))
                elif passed_over is not None:
                    passed_over(name, kind)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        if entry.is_file():
            return "file"
        if not entry.is_symlink():
            return "special_file"
        return "linked_folder" if entry.is_dir() else "special_file" if Path(entry.path).exists() else "broken_link"
    except OSError:
        # A link to itself.
        return "broken_link"
