"""The stored augmentations of a sample, of which an epoch replays one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from mobileclip.data.augmentation.operations import OPERATIONS
from mobileclip.data.augmentation.replay import AugmentationParams, compress, decompress
from mobileclip.data.skips import BadSampleError

_NUM_OPERATIONS = len(OPERATIONS)


class StoredViews(Sequence[AugmentationParams]):
    """Augmentations of one image as they are stored: all are checked, and one is parsed when it is asked for.

    Args:
        compressed: the public form of each.
        image_size: of the source image, where it is known.

    Raises:
        ValueError: if one is malformed, or its crop leaves the image.
    """

    def __init__(self, compressed: Sequence[Any], image_size: tuple[int, int] | None) -> None:
        self._compressed, self.image_size = compressed, image_size
        rights, bottoms = [], []
        for one in compressed:
            # What nearly all are is looked at here, since every sample that is read has dozens of these.
            try:
                (top, left, height, width), operations = one
                is_plain = type(top) is type(left) is type(height) is type(width) is int
                is_plain = is_plain and top >= 0 and left >= 0 and height > 0 and width > 0
                for index, magnitude in operations:
                    is_known = type(index) is int and 0 <= index < _NUM_OPERATIONS
                    # A number less itself is 0, but for NaN and infinity.
                    is_plain = is_plain and is_known and type(magnitude) is float and magnitude - magnitude == 0
            except (TypeError, ValueError):
                is_plain = False
            if not is_plain:
                top, left, height, width = decompress(one, image_size).crop
            rights.append(left + width)
            bottoms.append(top + height)
        self._right, self._bottom = max(rights, default=0), max(bottoms, default=0)
        if image_size is not None:
            self.check_fits(image_size)

    def __len__(self) -> int:
        return len(self._compressed)

    @overload
    def __getitem__(self, index: int) -> AugmentationParams: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[AugmentationParams, ...]: ...

    def __getitem__(self, index: int | slice) -> AugmentationParams | tuple[AugmentationParams, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(len(self))[index])
        return decompress(self._compressed[index], self.image_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def check_fits(self, size: tuple[int, int]) -> None:
        """Raise unless all of them can be replayed on an image of this size; see `AugmentationParams.check_fits`."""
        if self.image_size not in (None, size) or self._right > size[0] or self._bottom > size[1]:
            for params in self:
                params.check_fits(size)


def stored_views(views: Iterable[AugmentationParams]) -> StoredViews:
    """Return augmentations of one image as they are stored.

    Raises:
        BadSampleError: if they were made for images of several sizes.
    """
    if isinstance(views, StoredViews):
        return views
    own = tuple(views)
    sizes = {params.image_size for params in own}
    if len(sizes) > 1:
        raise BadSampleError("bad_augmentation", "the augmentations were made for several sizes of the image")
    return StoredViews([compress(params) for params in own], *sizes or (None,))
