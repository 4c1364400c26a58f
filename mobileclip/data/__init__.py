"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches."""

from mobileclip.data.augmentation import (
    AugmentationParams,
    AugmentationSpec,
    augmentation_rng,
    augmentations,
    crop_augmentation,
    datacompdr_augmentation,
)
from mobileclip.data.batch import ReinforcedBatch
from mobileclip.data.image import ImageError, ImageTransform, load_image
from mobileclip.data.pipeline import ReinforcedPipeline, ReinforcedPipelineSpec
from mobileclip.data.sample import ImageTextSample, Layout, ReinforcedSample, decode_image
from mobileclip.data.shards import (
    count_samples,
    expand_shards,
    read_reinforced_samples,
    read_samples,
    write_shard,
    write_shards,
)
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.data.tokenizer import Tokenizer

__all__ = [
    "AugmentationParams",
    "AugmentationSpec",
    "BadSampleError",
    "ImageError",
    "ImageTextSample",
    "ImageTransform",
    "Layout",
    "ReinforcedBatch",
    "ReinforcedPipeline",
    "ReinforcedPipelineSpec",
    "ReinforcedSample",
    "Skip",
    "SkipReport",
    "Tokenizer",
    "augmentation_rng",
    "augmentations",
    "count_samples",
    "crop_augmentation",
    "datacompdr_augmentation",
    "decode_image",
    "expand_shards",
    "load_image",
    "read_reinforced_samples",
    "read_samples",
    "write_shard",
    "write_shards",
]
