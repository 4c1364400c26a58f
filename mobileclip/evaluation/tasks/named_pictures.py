"""Images by name, from a zip file or a folder."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence

import attrs
from torch import Tensor

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.encoding.inference import Encoders

_MAX_IMAGE_BYTES = 1 << 28
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@attrs.frozen(kw_only=True)
class Picture:
    """An encoded image and its name."""

    name: str
    content: bytes = attrs.field(repr=lambda data: f"{len(data)} bytes")


def embed_named(
    encoders: Encoders, images: str, names: Sequence[str], report: SkipReport, *, title: str
) -> dict[str, Tensor]:
    """Return the embeddings of the images of these names that can be used, each encoded once.

    Shape:
        values: `(dim,)`.

    Args:
        encoders: of the model.
        images: see `read_pictures`.
        names: which are wanted, each once.
        report: reasons are those of `read_pictures`, and for images that cannot be decoded they start with `image_`.
        title: of the bar.

    Raises:
        ValueError, OSError: see `read_pictures`.
    """

    def skip(picture: Picture, error: BadSampleError) -> None:
        report.add(Skip(reason=error.reason, key=picture.name, shard=images, detail=error.detail))

    found, embeddings = encoders.embed_pictures(
        read_pictures(images, names, report),
        lambda picture: picture.content,
        keep=lambda picture: picture.name,
        skip=skip,
        title=title,
        total=len(names),
    )
    return dict(zip(found, embeddings.unbind(), strict=True))


def read_pictures(images: str, names: Sequence[str], report: SkipReport) -> Iterator[Picture]:
    """Yield the images of these names, in the order in which they are stored.

    Args:
        images: a zip file, or a folder, with files called by the names; path or address.
        names: which are wanted, each once.
        report: the reasons are image_missing and image_unreadable.

    Raises:
        ValueError: if the zip file is none.
        OSError: if it cannot be read, or a store cannot be reached.
    """
    if not images.endswith(".zip"):
        yield from _in_folder(images, names, report)
        return
    with storage.open_read(images) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{images} is no zip file, or not a whole one: {error}; fetch it again") from None
        with archive:
            yield from _in_zip(images, archive, names, report)


def _in_folder(folder: str, names: Sequence[str], report: SkipReport) -> Iterator[Picture]:
    for name in names:
        paths = [storage.join(folder, f"{name}.{extension}") for extension in IMAGE_EXTENSIONS]
        path = next((path for path in paths if storage.exists(path)), None)
        if path is None:
            _report_missing(folder, name, report)
        elif (storage.size(path) or 0) > _MAX_IMAGE_BYTES:
            _report_unreadable(folder, name, f"it has more than {_MAX_IMAGE_BYTES} bytes", report)
        else:
            yield Picture(name=name, content=storage.read_bytes(path, limit=_MAX_IMAGE_BYTES))


def _in_zip(images: str, archive: zipfile.ZipFile, names: Sequence[str], report: SkipReport) -> Iterator[Picture]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name, _, extension = entry.filename.rpartition("/")[2].rpartition(".")
        if extension.lower() in IMAGE_EXTENSIONS:
            entries.setdefault(name, entry)
    for name in names:
        if name not in entries:
            _report_missing(images, name, report)
    # From a web server, going on is sooner than going back and forth.
    for name in sorted(set(names) & entries.keys(), key=lambda name: entries[name].header_offset):
        if entries[name].file_size > _MAX_IMAGE_BYTES:
            _report_unreadable(images, name, f"it has {entries[name].file_size} bytes", report)
            continue
        try:
            content = archive.read(entries[name])
        except _READ_ERRORS as error:
            _report_unreadable(images, name, f"{type(error).__name__}: {error}", report)
            continue
        yield Picture(name=name, content=content)


def _report_missing(images: str, name: str, report: SkipReport) -> None:
    expected = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
    detail = f"there is no file of that name, with one of {expected}"
    report.add(Skip(reason="image_missing", key=name, shard=images, detail=detail))


def _report_unreadable(images: str, name: str, detail: str, report: SkipReport) -> None:
    report.add(Skip(reason="image_unreadable", key=name, shard=images, detail=detail))
