"""How strongly pictures are augmented: three policies, from nearly the whole picture to what is hard to recognise."""

from __future__ import annotations

from examples.quickstart.emoji.teachers import emoji_augmentation
from mobileclip.data import AugmentationSpec, crop_augmentation

WEAK, MEDIUM, STRONG = "weak", "medium", "strong"
VIEWS = (WEAK, MEDIUM, STRONG)


def view_augmentation(view: str, size: int) -> AugmentationSpec:
    """Return the policy of a kind of views.

    Args:
        view: `weak` for crops of 90 to 100 % of the picture; `medium` for crops of 50 to 100 % and one of RandAugment's
            operations; `strong` for crops of 30 to 100 % and two, which is the published policy with larger crops.
        size: side of the output, in pixels.
    """
    if view == WEAK:
        return crop_augmentation(size)
    if view == MEDIUM:
        return AugmentationSpec(
            size=size, scale=(0.5, 1.0), num_operations=1, reference_size=224, scale_translations=True
        )
    return emoji_augmentation(size)
