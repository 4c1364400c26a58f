"""The two ways in which pictures are augmented."""

from __future__ import annotations

from mobileclip.data import AugmentationSpec
from mobileclip.data.augmentation.replay import crop_augmentation


def weak_augmentation(size: int) -> AugmentationSpec:
    """Return plain CLIP's policy: nearly the whole picture, resized.

    Args:
        size: side of the output, in pixels.
    """
    return crop_augmentation(size)
