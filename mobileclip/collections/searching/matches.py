"""Search results: a picture, its score, and what the index knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mobileclip.progress import duration


@attrs.frozen(kw_only=True)
class Match:
    """A search result: a picture with its score.

    Args:
        id: that its index knows it by, for good.
        path: of the file that it is in.
        part: key of its sample, where the file holds several.
        score: cosine similarity with what was asked for, from -1 to 1.
        size: of the picture as it is encoded, or of the video, in bytes.
        width: in pixels.
        height: in pixels.
        camera: that took it, where it is known.
        taken: when, where it is known, such as `2024-05-01T12:30:00`.
        latitude: where, in degrees, where it is known.
        longitude: where, in degrees, where it is known.
        time: of a frame of a video, in seconds since its first one.
    """

    id: int
    path: str
    part: str | None
    score: float
    size: int
    width: int
    height: int
    camera: str | None
    taken: str | None
    latitude: float | None
    longitude: float | None
    time: float | None

    @property
    def name(self) -> str:
        """The path, with the part or the time behind it."""
        if self.time is not None:
            return f"{self.path} {clock(self.time)}"
        return self.path if self.part is None else f"{self.path}/{self.part}"

    def known(self) -> dict[str, Any]:
        """Return what is known of it, by name."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


def clock(seconds: float) -> str:
    """Return a time as players show it.

    Examples:
        >>> clock(42.5), clock(3723)
        ('0:42', '1:02:03')
    """
    return duration(int(seconds))


def first_of_videos(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return which of some pictures are left when only the first frame of each video counts.

    Args:
        rows: what is known of the pictures, the nearest first.
    """
    seen: set[str] = set()
    chosen = []
    for number, row in enumerate(rows):
        if row["time"] is None or row["path"] not in seen:
            chosen.append(number)
        if row["time"] is not None:
            seen.add(row["path"])
    return chosen


def match_of(row: Mapping[str, Any], score: float) -> Match:
    """Return a picture as it is found.

    Args:
        row: what is known of it, see `Snapshot.rows`.
        score: cosine similarity with what was asked for.
    """
    known = {field.name: row[field.name] for field in attrs.fields(Match) if field.name != "score"}
    return Match(score=round(score, 4), **known)
