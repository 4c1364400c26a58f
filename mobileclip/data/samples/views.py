"""The augmentations of a stored sample, of which an epoch replays one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from mobileclip.data.augmentation.replay import AugmentationParams, decompress
from mobileclip.data.skips import BadSampleError


class StoredViews(Sequence[AugmentationParams]):
    """Augmentations as they are stored. All crops are checked; an augmentation is parsed when it is asked for.

    Args:
        compressed: the public form of each.
        image_size: of the source image, where it is known.

    Raises:
        ValueError: if one has no crop, or its crop leaves the image.
    """

    def __init__(self, compressed: Sequence[Any], image_size: tuple[int, int] | None) -> None:
        self._compressed, self.image_size = compressed, image_size
        rights, bottoms = [], []
        for one in compressed:
            try:
                top, left, height, width = one[0]
                is_plain = type(top) is type(left) is type(height) is type(width) is int
            except (TypeError, ValueError, LookupError):
                is_plain = False
            if not is_plain or top < 0 or left < 0 or height < 1 or width < 1:
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
        """Return one, or several.

        Raises:
            BadSampleError: if it is malformed; reason `bad_augmentation`.
        """
        if isinstance(index, slice):
            return tuple(self[place] for place in range(len(self))[index])
        try:
            return decompress(self._compressed[index], self.image_size)
        except (ValueError, OverflowError) as error:
            raise BadSampleError("bad_augmentation", f"paug.json: {error}") from None

    def check_fits(self, size: tuple[int, int]) -> None:
        """Raise unless all of them can be replayed on an image of this size; see `AugmentationParams.check_fits`."""
        if self.image_size not in (None, size) or self._right > size[0] or self._bottom > size[1]:
            for params in self:
                params.check_fits(size)
