"""Which files of a folder are images, by their names, and why the others are not: one policy for every command.

Hidden files, whose names begin with a dot, are left out. Hidden folders and the shadows of macOS archives (`__MACOSX`)
are not entered. Links to files in the folder are followed; links to files outside it are where the environment variable
`MOBILECLIP_FOLLOW_LINKS` is 1. Links to folders are not, as they may lead anywhere and round in circles.
Pipes, sockets and devices are left out, and so are folders that cannot be read. All of it is counted and named.
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
    HIDDEN: "hidden",
    "hidden_folder": "hidden folders, which are not entered",
    "unreadable_folder": "folders that cannot be read",
    "unreadable_file": "files that cannot be looked at",
    OTHER: "no images by their names",
    "linked_folder": "links to folders, which are not followed",
    "outside_link": f"links to files outside the folder, which are read with {FOLLOW_LINKS}=1",
    "broken_link": "links that lead nowhere",
    "special_file": "pipes, sockets or devices",
    "name_not_utf8": "names that are not UTF-8, and need others",
}
"""What becomes of a file that is no image, and how a person is told."""


@attrs.frozen(kw_only=True)
class FolderFiles:
    """The files of a folder and of those below it.

    Args:
        path: the folder, or its URL.
        files: fingerprints by relative name, with `/` between its parts, of all that are not hidden.
        passed_over: hidden files, links to folders and the like.
    """

    path: str
    files: Mapping[str, str]
    passed_over: tuple[Skip, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the files that are called like images, sorted."""
        return tuple(sorted(filter(is_image_name, self.files)))

    def left_out(self, used: Collection[str] = ()) -> tuple[Skip, ...]:
        """Return every file that is no image, and why.

        Args:
            used: names of files that are read beside the images.
        """
        others = sorted(name for name in self.files if not is_image_name(name) and name not in used)
        return (*self.passed_over, *(_skip(self.path, name, OTHER) for name in others))

    def said_left_out(self) -> str:
        """Return what was left out as the end of a message; nothing where nothing was."""
        return "".join(f"; left out: {line}" for line in describe_left_out(self.left_out()))


def list_folder(path: str | os.PathLike[str]) -> FolderFiles:
    """Return the files of a folder, with those in the folders below.

    Raises:
        OSError: if it cannot be listed.
        StorageError: if its store cannot be reached.
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
    """Return the images that a path means, in order, and what was left out.

    Args:
        given: an image, which is taken whatever it is called, or a folder, which is looked through.

    Raises:
        ValueError: if a folder holds no images.
        OSError: if it cannot be listed.
    """
    if not given.is_dir():
        return [given], ()
    found = list_folder(given)
    if not found.images:
        raise ValueError(f"the folder {given} holds no images ({', '.join(IMAGE_EXTENSIONS)}){found.said_left_out()}")
    return [given / name for name in found.images], found.left_out()


def describe_left_out(skips: Sequence[Skip]) -> tuple[str, ...]:
    """Return a line for every reason: how many files, and of which kinds."""
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
    """Return a file's name as text: names on disk may hold bytes that are none, and line breaks."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def _skip(place: str, name: str, reason: str) -> Skip:
    label = printable_name(name)
    return Skip(reason=reason, key=label, shard=place, detail=f"{label} is left out: {REASONS[reason]}")
