"""Finds the files to index, and checks for missing files and folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data import IMAGE_EXTENSIONS, Skip, expand_shards, list_folder
from mobileclip.datasets import VIDEO_EXTENSIONS, is_video_name


class Presence:
    """Checks whether files exist; one check is enough for all files in a missing folder."""

    def __init__(self) -> None:
        self._gone: dict[str, bool] = {}

    def __contains__(self, path: str) -> bool:
        """Return whether a file exists; if the check fails with another error, assume that the file exists."""
        folder = os.path.dirname(path)  # noqa: PTH120 - texts, of any number
        if folder not in self._gone:
            self._gone[folder] = not _is_there(folder, stat.S_ISDIR)
        return not self._gone[folder] and _is_there(path, stat.S_ISREG)


class MissingFolders:
    """Finds missing or empty folders, with one check per folder."""

    def __init__(self) -> None:
        self._holds_something: dict[str, bool] = {}

    def around(self, path: str) -> str | None:
        """Return the outermost missing or empty folder above a file; None if the file's folder is not empty."""
        found, folder = None, os.path.dirname(path)  # noqa: PTH120 - texts, of any number
        while not self._holds(folder) and folder != (parent := os.path.dirname(folder)):  # noqa: PTH120
            found, folder = folder, parent
        return found

    def _holds(self, folder: str) -> bool:
        if folder not in self._holds_something:
            try:
                with os.scandir(folder) as entries:
                    self._holds_something[folder] = any(True for _ in entries)
            except (FileNotFoundError, NotADirectoryError):
                self._holds_something[folder] = False
            except OSError:  # the content is unknown
                self._holds_something[folder] = True
        return self._holds_something[folder]


def stamp_of(path: str) -> tuple[int, int] | None:
    """Return a file's modification time in nanoseconds and size in bytes; None for a missing file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return storage.modified_ns(status), status.st_size


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path equals a folder or is below the folder; compare only the strings."""
    return path == folder or path.startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def _is_there(path: str, is_kind: Callable[[int], bool]) -> bool:
    try:
        return is_kind(os.stat(path).st_mode)  # noqa: PTH116 - faster for very many files
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


EXPECTED = "expected images, videos, tar shards such as 'shards/{000..127}.tar', or folders of these files"
_SHARD = ".tar"
# Approximate number of bytes per image to encode, for shards of images from the web, and for videos with one encoded
# frame per ten seconds.
_BYTES_PER_IMAGE = {"shard": 2**16, "video": 2**23}


@attrs.frozen(kw_only=True)
class FoundFile:
    """A file to index.

    Args:
        path: absolute path of the file.
        size: size in bytes.
        mtime_ns: modification time of the file, in nanoseconds since 1970.
        kind: whether the file is an image, a shard, or a video.
    """

    path: str
    size: int
    mtime_ns: int
    kind: Literal["image", "shard", "video"]


@attrs.frozen(kw_only=True)
class Scan:
    """The result of a scan: inputs and files.

    Args:
        inputs: absolute paths of the inputs.
        missing: inputs that do not exist or are folders without images (an unmounted disk, for example).
        files: files by path, sorted.
        left_out: skipped files: hidden files, other file types, and names that an index cannot store.
    """

    inputs: tuple[str, ...]
    files: dict[str, FoundFile]
    left_out: tuple[Skip, ...] = ()
    missing: tuple[str, ...] = ()

    def covers(self, path: str) -> bool:
        """Return whether a path is an input or below an input."""
        return any(is_inside(path, one) for one in self.inputs)


def estimated_images(files: Iterable[FoundFile]) -> int:
    """Return the approximate number of images in files."""
    return sum(1 if file.kind == "image" else 1 + file.size // _BYTES_PER_IMAGE[file.kind] for file in files)


def scan(inputs: Sequence[str], *, may_be_missing: bool = False) -> Scan:
    """Find the images, videos and shards in files, folders and patterns.

    The scan searches folders recursively, and skips and counts hidden files, links to folders, and other file types.

    Args:
        inputs: paths and brace patterns.
        may_be_missing: whether to continue if an input is missing or is a folder without images (an unmounted disk, for
            example), instead of raising an error.

    Raises:
        ValueError: if an input is a URL, or a folder without images.
        OSError: if an input is missing.
    """
    found: dict[str, FoundFile] = {}
    left_out: list[Skip] = []
    places: list[str] = []
    missing: list[str] = []
    for given in inputs:
        for path in _expanded(given):
            try:
                names, others = _files_at(path)
            except (ValueError, OSError):
                if not may_be_missing:
                    raise
                missing.append(path)
                continue
            places.append(path)
            left_out += others
            for name in names:
                _enter(name, found, left_out)
    files = dict(sorted(found.items()))
    return Scan(
        inputs=tuple(dict.fromkeys(places)),
        files=files,
        left_out=tuple(left_out),
        missing=tuple(dict.fromkeys(missing)),
    )


def _expanded(given: str) -> list[str]:
    if not given.strip():
        raise ValueError(f"an input is empty; {EXPECTED}")
    if storage.is_remote(given) or given.startswith("pipe:"):
        raise ValueError(f"{storage.without_secrets(given)} is not on this machine; {EXPECTED}")
    paths = expand_shards(given) if "{" in given and not Path(given).exists() else (given,)
    return [storage.absolute_path(path) for path in paths]


def _files_at(path: str) -> tuple[list[str], Sequence[Skip]]:
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{storage.printable(path)} does not exist; {EXPECTED}")
    if not place.is_dir():
        if not place.is_file():
            raise ValueError(f"{storage.printable(path)} is a pipe or a device, which may never end; {EXPECTED}")
        return [path], ()
    listed = list_folder(path)
    others = [name for name in sorted(listed.files) if name.endswith(_SHARD) or is_video_name(name)]
    names = [os.path.join(path, name) for name in (*listed.images, *others)]  # noqa: PTH118 - texts, of any number
    if not names:
        raise ValueError(
            f"the folder {storage.printable(path)} holds no images ({', '.join(IMAGE_EXTENSIONS)}), no videos "
            f"({', '.join(VIDEO_EXTENSIONS)}) and no tar shards; is the disk mounted? "
            f"An existing index keeps the images of this folder{listed.skip_summary()}"
        )
    return names, listed.left_out(used=frozenset(others))


def _enter(path: str, found: dict[str, FoundFile], left_out: list[Skip]) -> None:
    folder, name = os.path.split(path)
    try:
        path.encode()
        status = os.stat(path)  # noqa: PTH116 - faster for very many files
    except UnicodeEncodeError:
        detail, key = "the file name is not UTF-8; rename the file", os.fsencode(name).decode(errors="replace")
        left_out.append(Skip(reason="name_not_utf8", key=key, shard=folder, detail=detail))
        return
    except FileNotFoundError:
        return
    except OSError as error:
        left_out.append(Skip(reason="unreadable_file", key=name, shard=folder, detail=str(error.strerror)))
        return
    found[path] = FoundFile(path=path, size=status.st_size, mtime_ns=storage.modified_ns(status), kind=_kind(path))


def _kind(path: str) -> Literal["image", "shard", "video"]:
    if path.endswith(_SHARD):
        return "shard"
    return "video" if is_video_name(path) else "image"
