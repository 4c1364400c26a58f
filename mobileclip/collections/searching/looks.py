"""Pictures looked at before one of them is called a copy: whether they are as indexed, show anything, and are sharp."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip import storage
from mobileclip.collections.searching.matches import Match, match_of
from mobileclip.collections.searching.pictures import make_small, read_encoded
from mobileclip.collections.store.snapshot import Snapshot

# Of a picture of one colour, or nearly: how far its pixels lie around their mean, of 255, once noise is averaged away.
_FLAT, _FLAT_SIDE = 5.0, 64
# Pictures are compared for sharpness at one size, at which a blurred one still differs.
_SHARPNESS_SIDE = 768


@attrs.frozen(kw_only=True)
class Look:
    """A picture that is what was indexed.

    Args:
        place: in the snapshot.
        match: the picture.
        is_blank: whether it shows nothing: one colour, or nearly.
        sharpness: how much its neighbouring pixels differ; 0 where no other one has as many pixels.
    """

    place: int
    match: Match
    is_blank: bool
    sharpness: float


def unchanged(snapshot: Snapshot, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of some pictures whose files are there, with the times and sizes that were indexed."""
    stamps: dict[str, tuple[int, int] | None] = {}
    kept = []
    for place, row in zip(places.tolist(), snapshot.rows(places, ("path", "part", "size", "mtime_ns")), strict=True):
        if row is None:
            continue
        if row["path"] not in stamps:
            stamps[row["path"]] = stamp_of(row["path"])
        stamp = stamps[row["path"]]
        if stamp is not None and stamp[0] == row["mtime_ns"] and (row["part"] is not None or stamp[1] == row["size"]):
            kept.append(place)
    return np.array(kept, np.int64)


def look_at(rows: Mapping[int, dict[str, Any]]) -> list[Look]:
    """Return those of some pictures that can be read and have the content that was indexed.

    Args:
        rows: what is known of them, by their places in the snapshot.
    """
    matches = [match_of(row, 1.0) for row in rows.values()]
    num_pixels = Counter(match.width * match.height for match in matches)
    looks = []
    for (place, row), match, data in zip(rows.items(), matches, read_encoded(matches), strict=True):
        if data is None or hashlib.sha256(data).hexdigest() != row["sha256"]:
            continue
        is_compared = num_pixels[match.width * match.height] > 1
        # It is decoded once for both, which takes far longer than either.
        image = make_small(data, match, _SHARPNESS_SIDE if is_compared else _FLAT_SIDE)
        if image is not None:
            sharpness = _sharpness(image) if is_compared else 0.0
            looks.append(Look(place=place, match=match, is_blank=_spread(image) < _FLAT, sharpness=sharpness))
    return looks


def _sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of the brightness, which is small where edges are blurred."""
    if min(image.size) < 3:
        return 0.0
    grey = np.asarray(image.convert("L"), np.int16)
    sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((sides - 4 * grey[1:-1, 1:-1]).var(dtype=np.float32))


def _spread(image: Image.Image) -> float:
    """Return how far pixels lie around their mean, in the channel where it is most; the picture is made smaller."""
    image.thumbnail((_FLAT_SIDE, _FLAT_SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    channels = np.asarray(image, np.float32).reshape(-1, 3).T.copy()
    return float(channels.std(axis=1).max())


def stamp_of(path: str) -> tuple[int, int] | None:
    """Return a file's time and size, by which a changed one is recognised; None if there is no such local file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return storage.modified_ns(status), status.st_size
