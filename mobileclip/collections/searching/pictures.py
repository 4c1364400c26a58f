"""Pictures of an index, read again: from their files, and from the shards that they are in."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from mobileclip.collections.searching.matches import Match
from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.opening import read_image_file
from mobileclip.data.images.transform import LIMITS
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import Skip
from mobileclip.datasets.videos.opening import VideoFile
from mobileclip.datasets.viewing.canvas import load_shown

_REDUCTIONS = (8, 4, 2)


def small_pictures(matches: Sequence[Match], side: int) -> Iterator[Image.Image | None]:
    """Yield the pictures no larger than they are shown; None for one that cannot be read any more.

    Args:
        matches: the pictures; each shard is read once.
        side: of the square that a picture fits into, in pixels.
    """
    in_shards = _read_parts(matches)
    for match in matches:
        if match.time is not None:
            yield make_small_frame(match, side)
            continue
        data = match.path if match.part is None else in_shards.get(match.name)
        yield None if data is None else make_small(data, match, side)


def read_encoded(matches: Sequence[Match]) -> Iterator[bytes | None]:
    """Yield pictures as they are encoded; None for one that cannot be read any more.

    Args:
        matches: the pictures, none of which is a frame; each shard is read once.
    """
    in_shards = _read_parts(matches)
    for match in matches:
        if match.part is not None:
            yield in_shards.get(match.name)
            continue
        try:
            data = read_image_file(match.path, LIMITS, "the picture")
        except ImageError:
            data = None
        yield data


def make_small(data: str | bytes, match: Match, side: int) -> Image.Image | None:
    """Return a picture no larger than it is shown; None if it cannot be decoded.

    Args:
        data: the picture as it is encoded, or the path of its file.
        match: the picture.
        side: of the square that it fits into, in pixels.
    """
    shorter = min(match.width, match.height)
    reduce = next((one for one in _REDUCTIONS if shorter >= one * side), 1)
    try:
        image = load_shown(data, reduce=reduce)
    except ImageError:
        return None
    image.thumbnail((side, side))
    return image


def webp(picture: Image.Image, quality: int) -> bytes:
    """Return a picture as WebP, without its metadata.

    Args:
        picture: see `make_small`.
        quality: from 0 to 100.
    """
    picture.info.clear()
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=quality)
    return stream.getvalue()


def make_small_frame(match: Match, side: int) -> Image.Image | None:
    """Return a frame of a video no larger than it is shown; None if it cannot be read any more.

    Args:
        match: the frame.
        side: of the square that it fits into, in pixels.
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
    """Return the pictures that are in shards, by name."""
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
