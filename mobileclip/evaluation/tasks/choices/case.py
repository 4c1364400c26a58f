"""Multiple-choice cases, and the images that they are about."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import attrs

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.skips import BadSampleError

_MAX_IMAGE_BYTES = 1 << 28
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)

# Left, top, right and bottom, in pixels; the last two are not part of it.
Box = tuple[int, int, int, int]


@attrs.frozen
class View:
    """An image, or a box of it, that a multiple-choice case shows.

    Args:
        picture: its name.
        box: the part, in pixels of the picture as it is encoded; the whole, turned upright, where it is None.
    """

    picture: str
    box: Box | None = None


@attrs.frozen(kw_only=True)
class Case:
    """Pictures and texts, some of which belong together.

    Args:
        key: what reports call it.
        views: one, or several to choose from.
        texts: one, or several to choose from.
        right: places of what is to be chosen; where there are as many texts as pictures, those of one place are pairs.
        group: what it tests; empty where a data set has no such groups.
    """

    key: str
    views: tuple[View, ...] = attrs.field(validator=attrs.validators.min_len(1))
    texts: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    right: tuple[int, ...] = (0,)
    group: str = ""


@attrs.frozen(kw_only=True)
class Picture:
    """A picture that is there, or can be read.

    Args:
        name: of the picture.
        content: the encoded picture; paths or URLs, of which the first that exists has it; or what is wrong.
    """

    name: str
    content: bytes | Sequence[str] | BadSampleError = attrs.field(repr=False)

    def read(self) -> bytes:
        """Return the encoded picture.

        Raises:
            BadSampleError: image_missing or image_unreadable.
            OSError: if it is there and cannot be read, or its store cannot be reached.
        """
        if isinstance(self.content, BadSampleError):
            raise self.content
        if isinstance(self.content, bytes):
            return self.content
        for address in self.content:
            with suppress(FileNotFoundError, NotADirectoryError):
                return storage.read_bytes(address, limit=_MAX_IMAGE_BYTES)
        others = ", with any other extension of images, too" if len(self.content) > 1 else ""
        raise BadSampleError("image_missing", f"{self.content[0]} is missing{others}")


def find_pictures(images: str, names: Sequence[str]) -> Iterator[Picture]:
    """Yield the pictures of these names, in the order in which they are stored.

    Args:
        images: a zip file, or a folder; path or URL.
        names: of files, each once, with or without their extension; those of a folder may lie in folders below.

    Raises:
        ValueError: if the zip file is none.
        OSError: if it cannot be read, or a store cannot be reached.
    """
    if not images.endswith(".zip"):
        for name in names:
            endings = [""] if _extension(name) in IMAGE_EXTENSIONS else [f".{one}" for one in IMAGE_EXTENSIONS]
            yield Picture(name=name, content=[storage.join(images, f"{name}{ending}") for ending in endings])
        return
    with storage.open_read(images) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{images} is no zip file, or not a whole one: {error}; fetch it again") from None
        with archive:
            yield from _in_zip(images, archive, names)


def _in_zip(images: str, archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[Picture]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        file = entry.filename.rpartition("/")[2]
        if _extension(file) in IMAGE_EXTENSIONS:
            entries.setdefault(file.rpartition(".")[0], entry)
    for name in names:
        if name not in entries:
            yield Picture(name=name, content=BadSampleError("image_missing", f"{images} has no picture {name!r}"))
    # From a web server, going on is sooner than going back and forth.
    for name in sorted(set(names) & entries.keys(), key=lambda name: entries[name].header_offset):
        yield Picture(name=name, content=_from_zip(archive, entries[name]))


def _from_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | BadSampleError:
    if entry.file_size > _MAX_IMAGE_BYTES:
        return BadSampleError("image_unreadable", f"it has {entry.file_size} bytes")
    try:
        return archive.read(entry)
    except _READ_ERRORS as error:
        return BadSampleError("image_unreadable", f"{type(error).__name__}: {error}")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""
