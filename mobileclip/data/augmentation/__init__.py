"""Augmentations: drawn once, stored as numbers, and replayed to the bit.

What is drawn is a value that a sample can hold. Reading and resizing pictures belong in `data.images`.
"""

from mobileclip.data.augmentation.erasing import RandomErasingSpec as RandomErasingSpec
from mobileclip.data.augmentation.mixing import MixingSpec as MixingSpec, Mixture as Mixture
from mobileclip.data.augmentation.operations import (
    OPERATIONS as OPERATIONS,
    Operation as Operation,
    augmentation_operations as augmentation_operations,
    magnitudes as magnitudes,
    operation_of as operation_of,
)
from mobileclip.data.augmentation.range_augment import (
    RangeAugment as RangeAugment,
    RangeAugmentSpec as RangeAugmentSpec,
    RangeNumbers as RangeNumbers,
)
from mobileclip.data.augmentation.replay import (
    AugmentationParams as AugmentationParams,
    AugmentationSpec as AugmentationSpec,
    augmentation_rng as augmentation_rng,
    augmentations as augmentations,
    compress as compress,
    crop_augmentation as crop_augmentation,
    datacompdr_augmentation as datacompdr_augmentation,
    decompress as decompress,
    imagenet_augmentation as imagenet_augmentation,
)
