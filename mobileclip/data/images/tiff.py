"""The tags of a TIFF file, and of a camera's notes, which are encoded like one: what they claim is checked first."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import attrs

from mobileclip.data.images.jpeg import most_scans
from mobileclip.data.images.limits import ImageError, ImageLimits

Buffer = bytes | memoryview

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PER_PIXEL, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LISTS = (273, 279, 324, 325)
_READ = frozenset(
    (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PER_PIXEL, _ROWS, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, *_LISTS)
)
_DIRECTORIES = (330, 34665, 34853, 40965)

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Values that stay bytes; all others become numbers of Python's, of thirty bytes each.
_TEXTS = frozenset((1, 2, 7))
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# None, three of fax machines, LZW, JPEG, deflate by its two numbers, and PackBits. The others are old JPEG, whose
# files nobody reads alike, LZMA, which takes gigabytes for a dictionary, and what is met in laboratories alone.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32773, 32946))
_NONE, _JPEG = 1, 7
_MAX_DIRECTORIES = 16


@attrs.frozen(kw_only=True)
class Tag:
    """One entry of a directory: its type, the number of its values, and where in the file they begin."""

    kind: int
    count: int
    start: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return _SIZES.get(self.kind, 0) * self.count


@attrs.frozen(kw_only=True)
class TiffTags:
    """The first directory of a TIFF file.

    Args:
        data: the file.
        order: `<` or `>`, of its bytes.
        tags: by their numbers.
        name: of the image, for messages.
    """

    data: Buffer = attrs.field(repr=False)
    order: str
    tags: Mapping[int, Tag]
    name: str

    def numbers(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return the first values of a tag, or the default where it is missing.

        Raises:
            ImageError: if they are no whole numbers.
        """
        found = self.tags.get(tag)
        if found is None:
            return default
        if found.kind not in _INTEGERS or not found.count:
            raise ImageError("corrupt", f"{self.name} is a TIFF whose tag {tag} holds no whole number")
        return struct.unpack_from(f"{self.order}{min(found.count, 8)}{_INTEGERS[found.kind]}", self.data, found.start)

    def check(self, limits: ImageLimits) -> int:
        """Return the bytes that decoding takes beside the pixels, for one strip or tile at a time.

        Raises:
            ImageError: if the limits do not allow its size, strips or tiles, or its compression is not read.
        """
        width, height = self.numbers(_WIDTH, (0,))[0], self.numbers(_HEIGHT, (0,))[0]
        limits.check_pixels(width, height, self.name)
        num_strips = max(self.tags[tag].count if tag in self.tags else 0 for tag in _LISTS)
        compression = self.numbers(_COMPRESSION, (_NONE,))[0]
        if compression not in _COMPRESSIONS:
            raise ImageError(
                "unsupported_format",
                f"{self.name} is a TIFF with compression {compression}, which is not read; save it with LZW or deflate",
            )
        if compression == _JPEG:
            self._check_scans(num_strips, width * height, limits)
        per_pixel = self.numbers(_PER_PIXEL, (1,))[0] if self.numbers(_PLANES, (1,))[0] == 1 else 1
        num_bytes = max(4, -(-max(self.numbers(_BITS, (1,))) * per_pixel // 8))
        if _TILE_WIDTH in self.tags or _TILE_HEIGHT in self.tags:
            across, down = self.numbers(_TILE_WIDTH, (0,))[0], self.numbers(_TILE_HEIGHT, (0,))[0]
            if not across or not down:
                raise ImageError("corrupt", f"{self.name} is a TIFF whose tiles have no size")
            # Tiles are decoded whole, however little of them is in the picture.
            limits.check_pixels(-(-width // across) * across, -(-height // down) * down, self.name)
            return num_bytes * across * down
        rows = min(self.numbers(_ROWS, (height,))[0], height)
        return 0 if compression == _NONE else num_bytes * width * rows

    def _check_scans(self, num_strips: int, num_pixels: int, limits: ImageLimits) -> None:
        limits.check_scans(max(1, most_scans(self.data) - num_strips), num_pixels, self.name)


def read_tags(data: Buffer, limits: ImageLimits, name: str) -> TiffTags:
    """Return the tags of the first directory, after a look at those below it.

    Args:
        data: the file, from its byte order on.
        limits: of the values in its tags.
        name: of the image, for messages.

    Raises:
        ImageError: if tags claim more than the file holds, because they overlap: each would be read on its own.
        struct.error, IndexError, OverflowError: if the file ends before its tags do.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in (data[2], data[3])
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    top: dict[int, Tag] = {}
    waiting, seen = [first], {first}
    num_bytes = num_values = 0
    for start in waiting:
        for number, tag in read_directory(data, start, order, limits, name, big=big):
            num_bytes += tag.num_bytes
            num_values += 0 if tag.kind in _TEXTS else tag.count
            limits.check_parts(num_values, name)
            if start == first:
                if number in _READ and number in top:
                    raise ImageError("corrupt", f"{name} has the tag {number} twice")
                top[number] = tag
            if number in _DIRECTORIES and tag.kind in _INTEGERS and len(waiting) < _MAX_DIRECTORIES:
                (below,) = struct.unpack_from(order + _INTEGERS[tag.kind], data, tag.start)
                if below not in seen and below < len(data):
                    seen.add(below)
                    waiting.append(below)
    if num_bytes > 2 * len(data):
        raise ImageError("corrupt", f"{name} has tags that claim {num_bytes:,} bytes; the file has {len(data):,}")
    return TiffTags(data=data, order=order, tags=top, name=name)


def read_directory(
    data: Buffer, start: int, order: str, limits: ImageLimits, name: str, *, big: bool = False
) -> Iterator[tuple[int, Tag]]:
    """Yield the tags of a directory with their numbers.

    Args:
        data: the file, from its byte order on.
        start: where in it the directory begins.
        order: `<` or `>`, of its bytes.
        limits: of the number of tags.
        name: of the image, for messages.
        big: whether it is a BigTIFF.

    Raises:
        ImageError: if there are more tags than the limits allow.
        struct.error, OverflowError: if the file ends before the directory does.
    """
    word, entry, length = ("Q", "HHQ", "Q") if big else ("I", "HHI", "H")
    width = struct.calcsize(f"={word}")
    (count,) = struct.unpack_from(order + length, data, start)
    limits.check_parts(count, name)
    position = start + struct.calcsize(f"={length}")
    for _ in range(count):
        number, kind, num_values = struct.unpack_from(order + entry, data, position)
        place = position + 4 + width
        position = place + width
        if _SIZES.get(kind, 0) * num_values > width:
            (place,) = struct.unpack_from(order + word, data, place)
        yield number, Tag(kind=kind, count=num_values, start=place)
