"""Lists the files of a directory, on this machine or in a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mobileclip.storage.addresses import AnyPath, backend_of, is_remote, join, local_path
from mobileclip.storage.backend import Info, retried

_MAC_ARCHIVE, _FOLDER = "__MACOSX", "folder"
_Tell = Callable[[str, str], None]


def list_files(directory: AnyPath, suffix: str = "", *, recursive: bool = False) -> tuple[str, ...]:
    """Return the paths of the files in a directory, sorted; none where there is no such directory.

    Args:
        directory: path or URL.
        suffix: of the files' names.
        recursive: with those in the directories below.

    Raises:
        OSError: if it cannot be listed.
        ValueError: if the URL is a web server's, which lists nothing.
    """
    names = sorted(name for name in find_files(directory, recursive=recursive) if name.endswith(suffix))
    return tuple(join(directory, name) for name in names)


def find_files(
    directory: AnyPath, *, recursive: bool = True, outside: bool = True, passed_over: _Tell | None = None
) -> dict[str, str]:
    """Return the fingerprints of the files in a directory, by their names relative to it, with `/` between parts.

    What lies below and cannot be looked at does not end the search: it is passed over, and what vanishes meanwhile is
    as if it had never been there.

    Args:
        directory: path or URL.
        recursive: with those in the directories below; hidden ones are not entered, and links to directories are not
            followed.
        outside: follow links to files outside the directory.
        passed_over: called with the name of everything else that is there, and with what it is: `hidden_folder`,
            `linked_folder`, `outside_link`, `broken_link`, `special_file`, `unreadable_folder` or `unreadable_file`.

    Raises:
        OSError: if the directory itself cannot be listed.
        ValueError: if the URL is a web server's, which lists nothing.
    """
    found = _find(directory, passed_over, recursive=recursive, outside=outside)
    return {name: info.fingerprint for name, info in found.items()}


def find_sizes(directory: AnyPath, names: Iterable[str] = ("",)) -> dict[str, int | None]:
    """Return the bytes of the files that lie where some of a directory do, by name; None where a store does not say.

    A store is asked once for a thousand files, or how many it lists at once, and never for one file alone.

    Args:
        directory: path or URL.
        names: below it, of which the folders count; those in the directory itself by default.

    Raises:
        OSError: if it cannot be listed.
        ValueError: if the URL is a web server's, which lists nothing.
    """
    return {
        f"{folder}{name}": info.size
        for folder in dict.fromkeys(name[: name.rfind("/") + 1] for name in names)
        for name, info in _find(join(directory, folder), None, recursive=False).items()
    }


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder of this name is hidden, or the shadow of one in an archive of macOS."""
    return name.startswith(".") or name == _MAC_ARCHIVE


def _find(directory: AnyPath, tell: _Tell | None, *, recursive: bool, outside: bool = True) -> dict[str, Info]:
    tell = tell or (lambda *_: None)
    if is_remote(directory):
        found = retried(lambda: backend_of(directory).find(os.fspath(directory), recursive=recursive))
        hidden = {name: folder for name in found if (folder := _hidden_folder(name))}
        for folder in dict.fromkeys(hidden.values()):
            tell(folder, "hidden_folder")
        return {name: info for name, info in found.items() if name not in hidden}
    top = local_path(directory)
    return dict(_walk(top, tell, recursive=recursive, outside=outside)) if top.is_dir() else {}


def _walk(top: Path, passed_over: _Tell, *, recursive: bool, outside: bool) -> Iterator[tuple[str, Info]]:
    resolved = top.resolve()
    waiting = [(top, "")]
    while waiting:
        directory, prefix = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                listed = list(entries)
        except OSError as error:
            if not prefix:
                raise
            if not isinstance(error, FileNotFoundError):
                passed_over(prefix.rstrip("/"), "unreadable_folder")
            continue
        for entry in listed:
            name, found = f"{prefix}{entry.name}", _look_at(entry)
            if isinstance(found, Info) and not outside and entry.is_symlink():
                found = found if Path(entry.path).resolve().is_relative_to(resolved) else "outside_link"
            if isinstance(found, Info):
                yield name, found
            elif found != _FOLDER:
                passed_over(name, found)
            elif recursive:
                waiting.append((Path(entry.path), f"{name}/"))


def _look_at(entry: os.DirEntry[str]) -> Info | str:
    """Return what a listing says of a file, or what else it is; what has vanished is a folder without anything."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return "hidden_folder" if is_hidden(entry.name) else _FOLDER
        if entry.is_file():
            status = entry.stat()
            return Info(size=status.st_size, version=str(status.st_mtime_ns))
        if not entry.is_symlink():
            return "special_file"
        return "linked_folder" if entry.is_dir() else "special_file" if Path(entry.path).exists() else "broken_link"
    except FileNotFoundError:
        return _FOLDER
    except OSError:
        # Of a link: it leads to itself.
        return "broken_link" if entry.is_symlink() else "unreadable_file"


def _hidden_folder(name: str) -> str:
    """Return the first hidden folder that a file of a store lies in; nothing where it lies in none."""
    parts = name.split("/")
    return next(("/".join(parts[: place + 1]) for place, part in enumerate(parts[:-1]) if is_hidden(part)), "")
