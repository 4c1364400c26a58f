"""What a JPEG's header says, and a copy of it that ends early: rows that nobody looks at need no decoding."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITH_LENGTH = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA))
_SCAN = 0xDA
_APP2 = 0xE2
_SEVERAL_PICTURES = b"MPF\0"
_BLOCK = 8


@attrs.frozen
class JpegFrame:
    """What a JPEG of 8 bits, grey or of three colours, says of itself.

    Args:
        width: in pixels.
        height: in pixels.
        height_offset: of the two bytes in the file that hold the height.
        row_group: rows of pixels that are encoded together, where all comes in one scan from top to bottom; else None.
    """

    width: int
    height: int
    height_offset: int
    row_group: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.width, self.height


def read_frame(data: bytes) -> JpegFrame | None:
    """Return the frame of a JPEG, or None of anything else: other formats, CMYK, or several pictures."""
    frame: JpegFrame | None = None
    num_components = 0
    for kind, position, segment in _segments(data):
        if kind == _SCAN:
            one_scan = segment[:1] == bytes((num_components,))
            return frame if frame is None or one_scan else attrs.evolve(frame, row_group=None)
        if kind in _FRAMES:
            if frame is not None:
                return None
            frame = _frame(kind, segment, position)
            num_components = 0 if frame is None else segment[5]
        elif kind == _APP2 and segment.startswith(_SEVERAL_PICTURES):
            return None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, position and content of what stands in front of the pixels, as long as it is well-formed."""
    position = 2 if data.startswith(_START) else len(data)
    while position + 4 <= len(data):
        kind, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position] != 0xFF or kind not in _WITH_LENGTH or length < 2:
            return
        yield kind, position + 4, data[position + 4 : position + 2 + length]
        position += 2 + length


def _frame(kind: int, segment: bytes, offset: int) -> JpegFrame | None:
    if kind not in (*_SEQUENTIAL, _PROGRESSIVE) or len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
        return None
    if len(segment) != 6 + 3 * segment[5]:
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    factors = [segment[7 + 3 * component] & 15 for component in range(segment[5])]
    if height == 0 or width == 0 or not all(1 <= factor <= 4 for factor in factors):
        return None
    # A single component is never interleaved: its blocks come row by row whatever its factor says.
    row_group = _BLOCK * (max(factors) if len(factors) > 1 else 1)
    return JpegFrame(width, height, offset + 1, None if kind == _PROGRESSIVE else row_group)


def cut_below(data: bytes, frame: JpegFrame, bottom: int) -> tuple[bytes, int]:
    """Return the JPEG without the rows far below `bottom`, and its height; those above decode to the same pixels.

    The encoded rows stay where they are, and a decoder passes over them on its way to the end mark. A file that lacks
    the mark is returned as it is, so that a truncated one is still found to be truncated; so is one of several scans.

    Args:
        data: the file.
        frame: what `read_frame` said of it.
        bottom: number of rows that are needed.
    """
    if frame.row_group is None or not data.endswith(_END):
        return data, frame.height
    # Chroma is interpolated between rows, across the edge of a group.
    height = -(-(bottom + frame.row_group // 2) // frame.row_group) * frame.row_group
    if height >= frame.height:
        return data, frame.height
    start = frame.height_offset
    return b"".join((data[:start], height.to_bytes(2, "big"), data[start + 2 :])), height
