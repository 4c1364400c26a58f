"""Pictures as the page shows them: made from the files of the index when they are asked for, and kept in memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import attrs

from mobileclip.collections.searching.looks import stamp_of
from mobileclip.collections.searching.matches import Match
from mobileclip.collections.searching.pictures import make_small, make_small_frame, read_encoded, webp
from mobileclip.processes import num_cores

SIDES = {"small": 416, "large": 1600}
"""Of the square that a picture fits into, in pixels, by the name of its size."""

_MOST_BYTES = 2**26
_QUALITY = 80
# Each holds a decoded picture in memory.
_MOST_AT_ONCE = min(4, num_cores())

"""When a file was last changed, in nanoseconds since 1970, and its size in bytes; None where there is none."""


@attrs.frozen(kw_only=True)
class Indexed:
    """What the file of a picture was when it was indexed.

    Args:
        sha256: of the encoded picture, or of the video.
        mtime_ns: when the file was last changed, in nanoseconds since 1970.
    """

    sha256: str
    mtime_ns: int


_Key = tuple[int, Indexed, int]


@attrs.frozen
class _Kept:
    """A picture that was made, and the file that it was made of."""

    data: bytes
    stamp: tuple[int, int] | None


class Thumbnails:
    """Small pictures, the ones asked for last kept.

    Args:
        num_bytes: of those that are kept, at most.
    """

    def __init__(self, num_bytes: int = _MOST_BYTES) -> None:
        self.num_bytes = num_bytes
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._num_kept_bytes = 0
        self._changing = threading.Lock()
        self._decoding = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def get(self, match: Match, indexed: Indexed, side: int) -> bytes | None:
        """Return a picture as WebP, without its metadata; None where its file is gone or another one.

        Args:
            match: the picture.
            indexed: what its file was then.
            side: of the square that it fits into, in pixels.
        """
        key, stamp = (match.id, indexed, side), stamp_of(match.path)
        with self._changing:
            kept = self._kept.get(key)
            if kept is not None and kept.stamp == stamp:
                self._kept.move_to_end(key)
                return kept.data
        with self._decoding:
            data = _make(match, indexed, side)
        if data is not None:
            self._keep(key, _Kept(data, stamp))
        return data

    def _keep(self, key: _Key, kept: _Kept) -> None:
        with self._changing:
            if (before := self._kept.pop(key, None)) is not None:
                self._num_kept_bytes -= len(before.data)
            self._kept[key] = kept
            self._num_kept_bytes += len(kept.data)
            while self._num_kept_bytes > self.num_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_kept_bytes -= len(oldest.data)


def _make(match: Match, indexed: Indexed, side: int) -> bytes | None:
    # A path that leads elsewhere by now shows nothing that was not indexed.
    if match.time is not None:
        # To hash a video takes seconds.
        is_same = stamp_of(match.path) == (indexed.mtime_ns, match.size)
        picture = make_small_frame(match, side) if is_same else None
    else:
        (data,) = read_encoded([match])
        is_same = data is not None and hashlib.sha256(data).hexdigest() == indexed.sha256
        picture = make_small(data, match, side) if data is not None and is_same else None
    return None if picture is None else webp(picture, _QUALITY)
