"""Find the image files of a folder by one policy for every command, and report every file that is left out.

Hidden files (names that begin with a dot) are left out. Hidden folders and the `__MACOSX` folders of macOS archives are
not entered. Links to files in the folder are followed; links to files outside the folder are followed only if the
environment variable `MOBILECLIP_FOLLOW_LINKS` is 1. Links to folders are not followed, because they may lead anywhere
or form cycles. Pipes, sockets, devices and unreadable folders are left out. `FolderFiles.left_out` lists every file
and folder that is left out.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS, is_image_name
from mobileclip.data.skips import Skip

FOLLOW_LINKS = "MOBILECLIP_FOLLOW_LINKS"
HIDDEN, OTHER = "hidden_file", "other_file"
REASONS = {
    HIDDEN: "hidden files",
    "hidden_folder": "hidden folders",
    "unreadable_folder": "folders that cannot be read",
    "unreadable_file": "files that cannot be accessed",
    OTHER: "names without an image extension",
    "linked_folder": "links to folders",
    "outside_link": f"links to files outside the folder ({FOLLOW_LINKS}=1 reads them)",
    "broken_link": "links without a target",
    "special_file": "pipes, sockets or devices",
    "name_not_utf8": "names that are not UTF-8",
}
"""Reasons for leaving out a file, each with its wording in messages."""


@attrs.frozen(kw_only=True)
class FolderFiles:
    """The files of a folder and its subfolders.

    Args:
        path: path or URL of the folder.
        files: fingerprints of all files that are not hidden, by relative name with `/` as separator.
        passed_over: hidden files, links to folders and other entries that were left out.
    """

    path: str
    files: Mapping[str, str]
    passed_over: tuple[Skip, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """Sorted names of the files with an image extension."""
        return tuple(sorted(filter(is_image_name, self.files)))

    def left_out(self, used: Collection[str] = ()) -> tuple[Skip, ...]:
        """Return one `Skip` for every file and folder that is left out.

        Args:
            used: names of files that are read in addition to the images.
        """
        others = sorted(name for name in self.files if not is_image_name(name) and name not in used)
        return (*self.passed_over, *(_skip(self.path, name, OTHER) for name in others))

    def skip_summary(self) -> str:
        """Return a description of the files left out, to append to a message; empty if no file was left out."""
        return "".join(f"; left out: {line}" for line in describe_left_out(self.left_out()))


def list_folder(path: str | os.PathLike[str]) -> FolderFiles:
    """Return the files of a folder and its subfolders.

    Raises:
        OSError: if the folder cannot be listed.
        StorageError: if the folder's store cannot be reached.
    """
    place = os.fspath(path)
    passed_over: list[tuple[str, str]] = []
    follow = os.environ.get(FOLLOW_LINKS) == "1"
    found = storage.find_files(place, outside=follow, passed_over=lambda *one: passed_over.append(one))
    hidden = {name for name in found if storage.is_hidden(posixpath.basename(name))}
    passed_over += ((name, HIDDEN) for name in hidden)
    return FolderFiles(
        path=place,
        files={name: mark for name, mark in found.items() if name not in hidden},
        passed_over=tuple(_skip(place, name, reason) for name, reason in sorted(passed_over)),
    )


def find_images(given: Path) -> tuple[list[Path], tuple[Skip, ...]]:
    """Return the sorted paths of the images at a path, and one `Skip` for every file left out.

    Args:
        given: path of an image with any extension, or path of a folder to search with its subfolders.

    Raises:
        ValueError: if the folder contains no images.
        OSError: if the folder cannot be listed.
    """
    if not given.is_dir():
        return [given], ()
    found = list_folder(given)
    if not found.images:
        raise ValueError(f"the folder {given} contains no images ({', '.join(IMAGE_EXTENSIONS)}){found.skip_summary()}")
    return [given / name for name in found.images], found.left_out()


def describe_left_out(skips: Sequence[Skip]) -> tuple[str, ...]:
    """Return one line per reason, with the number of files and the most common extensions."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for skip in skips:
        kinds[skip.reason][posixpath.splitext(skip.key)[1].lower() or posixpath.basename(skip.key)] += 1
    return tuple(
        f"{count.total():,} {REASONS.get(reason, reason)}: "
        + ", ".join(f"{kind} ({number:,})" for kind, number in count.most_common(8))
        + (", and more" if len(count) > 8 else "")
        for reason, count in sorted(kinds.items())
    )


def printable_name(name: str) -> str:
    """Return a file name as printable text: names on disk may contain line breaks and undecodable bytes."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def _skip(place: str, name: str, reason: str) -> Skip:
    label = printable_name(name)
    return Skip(reason=reason, key=label, shard=place, detail=f"{label} is left out: {REASONS[reason]}")
