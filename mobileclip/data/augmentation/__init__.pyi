from .erasing import RandomErasingSpec as RandomErasingSpec
from .mixing import MixingSpec as MixingSpec, Mixture as Mixture
from .operations import (
    OPERATIONS as OPERATIONS,
    Operation as Operation,
    augmentation_operations as augmentation_operations,
    magnitudes as magnitudes,
    operation_of as operation_of,
)
from .range_augment import (
    RangeAugment as RangeAugment,
    RangeAugmentSpec as RangeAugmentSpec,
    RangeNumbers as RangeNumbers,
)
from .replay import (
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
