"""Reads indexed images again, to make thumbnails or to encode the images with another model."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip.collections.scan import stamp_of
from mobileclip.collections.snapshot import Match
from mobileclip.data import LIMITS, ImageError, Skip, SkipReport, read_image_file, read_shard
from mobileclip.datasets import VideoFile, load_shown
from mobileclip.inference import Encoded, ImageItem, ImageTextModel, Moment, encode_images

_REDUCTIONS = (8, 4, 2)
# Side and WebP quality of an example's copy, and maximum bytes of a file that is copied unchanged. The largest image
# towers use 448 pixels.
_COPY_SIDE, _COPY_QUALITY, _COPY_BYTES = 512, 90, 2**16


def small_images(matches: Sequence[Match], side: int) -> Iterator[Image.Image | None]:
    """Yield the images at display size; None for an unreadable image.

    Args:
        matches: matches of the images; the function reads each shard once.
        side: maximum side in pixels.
    """
    in_shards = _read_parts(matches)
    for match in matches:
        if match.time is not None:
            yield make_small_frame(match, side)
            continue
        data = match.path if match.part is None else in_shards.get(match.name)
        yield None if data is None else make_small(data, match, side)


def read_encoded(matches: Sequence[Match]) -> Iterator[bytes | None]:
    """Yield the encoded bytes of images; None for an unreadable image.

    Args:
        matches: matches of the images, without video frames; the function reads each shard once.
    """
    in_shards = _read_parts(matches)
    for match in matches:
        if match.part is not None:
            yield in_shards.get(match.name)
            continue
        try:
            data = read_image_file(match.path, LIMITS, "the image")
        except ImageError:
            data = None
        yield data


def make_small(data: str | bytes, match: Match, side: int) -> Image.Image | None:
    """Return an image at display size; None if decoding fails.

    Args:
        data: encoded image, or path of its file.
        match: match of the image.
        side: maximum side in pixels.
    """
    shorter = min(match.width, match.height)
    reduce = next((one for one in _REDUCTIONS if shorter >= one * side), 1)
    try:
        image = load_shown(data, reduce=reduce)
    except ImageError:
        return None
    image.thumbnail((side, side))
    return image


def webp(image: Image.Image, quality: int) -> bytes:
    """Return an image as WebP, without its metadata.

    Args:
        image: image to encode; the function clears its metadata.
        quality: WebP quality from 0 to 100.
    """
    image.info.clear()
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality)
    return stream.getvalue()


def small_copy(data: bytes) -> bytes | None:
    """Return a small copy of an image, large enough for encoding; None if the image cannot be decoded.

    Small files stay unchanged; larger files become WebP.
    """
    if len(data) <= _COPY_BYTES:
        return data
    try:
        image = load_shown(data)
    except ImageError:
        return None
    image.thumbnail((_COPY_SIDE, _COPY_SIDE))
    return webp(image, _COPY_QUALITY)


def small_copy_of(match: Match) -> bytes | None:
    """Return a small copy of an indexed image, see `small_copy`; None if the image can no longer be read."""
    if match.time is not None:
        frame = make_small_frame(match, _COPY_SIDE)
        return None if frame is None else webp(frame, _COPY_QUALITY)
    (data,) = read_encoded([match])
    return None if data is None else small_copy(data)


def make_small_frame(match: Match, side: int) -> Image.Image | None:
    """Return a video frame at display size; None if the frame is unreadable.

    Args:
        match: match of the frame.
        side: maximum side in pixels.
    """
    assert match.time is not None, "a frame has a time"
    try:
        with VideoFile(Path(match.path), LIMITS, "the video") as video:
            image = video.frame(match.time)
    except ImageError:
        return None
    image.thumbnail((side, side))
    return image


def _read_parts(matches: Sequence[Match]) -> dict[str, bytes]:
    """Return the encoded images from shards, by name."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for match in matches:
        if match.part is not None:
            wanted[match.path].add(match.part)
    skips: list[Skip] = []
    found = {}
    for shard, parts in wanted.items():
        for raw in read_shard(shard, skips.append):
            if raw.key in parts and raw.image is not None:
                found[f"{shard}/{raw.key}"] = raw.image
                parts.remove(raw.key)
            if not parts:
                break
    return found


Known = Mapping[str, Any]
"""The row of an image, as values by column name."""
COLUMNS = ("id", "path", "part", "size", "mtime_ns", "sha256", "time")
"""The columns needed to read an image again."""


@attrs.frozen(kw_only=True, eq=False)
class Reencoded:
    """An indexed image, read again for another model.

    Args:
        row: row of the image.
        embedding: new embedding, `(dim,)`, of unit length; None after a problem.
        problem: `gone` (missing file), `changed` or `unreadable`; None if the image has a new embedding.
    """

    row: Known
    embedding: NDArray[np.float32] | None = None
    problem: Literal["gone", "changed", "unreadable"] | None = None


def reencode(
    rows: Iterable[Known], clip: ImageTextModel, *, reduced: bool, batch_size: int = 32, num_workers: int = 1
) -> Iterator[Reencoded]:
    """Encode indexed images with another model, and yield each image with an embedding or a problem.

    Args:
        rows: rows of the images; rows of the same shard must be adjacent, so that the function reads each shard once.
        clip: model that encodes the images.
        reduced: whether to decode a JPEG at reduced size, see `read_tower_image`.
        batch_size: number of images per batch.
        num_workers: number of decoding processes; 1 decodes in this process.

    Raises:
        LostProcessError: if a decoding process dies.
    """
    aside: list[Reencoded] = []
    encoded = encode_images(clip, _images(rows, aside), reduced=reduced, batch_size=batch_size, num_workers=num_workers)
    for one in encoded:
        yield _compared(one)
        while aside:
            yield aside.pop()
    yield from aside


def _compared(one: Encoded[Known]) -> Reencoded:
    """Return an image with its embedding, or with a problem if the image is unreadable or has changed."""
    row, read = one.item.key, one.read
    if isinstance(read, ImageError):
        return Reencoded(row=row, problem="gone" if read.reason == "missing_file" else "unreadable")
    if row["time"] is None and read.sha256 != row["sha256"]:
        return Reencoded(row=row, problem="changed")
    return Reencoded(row=row, embedding=one.embedding)


def _images(rows: Iterable[Known], aside: list[Reencoded]) -> Iterator[ImageItem[Known]]:
    """Yield the readable images; append unreadable images to `aside`."""
    for shard, some in groupby(rows, lambda row: None if row["part"] is None else row["path"]):
        if shard is not None:
            yield from _parts(shard, {row["part"]: row for row in some}, aside)
            continue
        for row in some:
            path = Path(row["path"])
            if row["time"] is None:
                yield ImageItem(key=row, name=row["path"], source=path)
            elif (problem := _change(path, row)) is None:
                yield ImageItem(key=row, name=row["path"], source=Moment(path=path, seconds=row["time"]))
            else:
                aside.append(Reencoded(row=row, problem=problem))


def _parts(shard: str, wanted: dict[str, Known], aside: list[Reencoded]) -> Iterator[ImageItem[Known]]:
    """Yield the wanted images of a shard."""
    there = Path(shard).is_file()
    for raw in read_shard(shard, SkipReport(log=False).add) if there else ():
        if raw.key in wanted and raw.image is not None and raw.problem is None:
            yield ImageItem(key=wanted.pop(raw.key), name=f"{shard}/{raw.key}", source=raw.image)
        if not wanted:
            return
    aside += [Reencoded(row=row, problem="changed" if there else "gone") for row in wanted.values()]


def _change(path: Path, row: Known) -> Literal["gone", "changed"] | None:
    """Check whether a video is gone, or has another size or time; hashing may take minutes."""
    now = stamp_of(str(path))
    if now is None:
        return "gone"
    return None if now == (row["mtime_ns"], row["size"]) else "changed"
