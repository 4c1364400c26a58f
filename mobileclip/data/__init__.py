"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches.

What lies between shards and a batch belongs here, in the package of its step; what several need lies beside them.
What prepares data sets offline is in `mobileclip.datasets`; models and losses do not belong here.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_import, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [
    "LAYOUTS",
    "AugmentationParams",
    "AugmentationSpec",
    "AugmentedSample",
    "BadSampleError",
    "Batch",
    "BatchSource",
    "CaptionerEntry",
    "Captions",
    "ColumnPipelineSpec",
    "Example",
    "ExampleMaker",
    "ExampleSpec",
    "ImageBatch",
    "ImageError",
    "ImageLimits",
    "ImageTextSample",
    "ImageTransform",
    "LabelledBatch",
    "Layout",
    "MixingSpec",
    "OnlinePipelineSpec",
    "RandomErasingSpec",
    "RangeAugment",
    "RangeAugmentSpec",
    "RangeNumbers",
    "ReinforcedBatch",
    "ReinforcedExampleSpec",
    "ReinforcedPipeline",
    "ReinforcedPipelineSpec",
    "ReinforcedSample",
    "ReinforcementCard",
    "Skip",
    "SkipReport",
    "StoredSample",
    "StoredTexts",
    "StreamPosition",
    "TeacherEntry",
    "TextBatch",
    "TextPipeline",
    "TextPipelineSpec",
    "TextsCard",
    "Tokenizer",
    "UidList",
    "ViewAgreement",
    "augmentation_rng",
    "augmentations",
    "card_of_shards",
    "check_layout",
    "check_source_image",
    "count_samples",
    "crop_augmentation",
    "datacompdr_augmentation",
    "decode_image",
    "drop_blank",
    "endless_shards",
    "expand_shards",
    "find_card",
    "hash_image",
    "imagenet_augmentation",
    "joined_positions",
    "json_captions",
    "keep_samples",
    "load_image",
    "make_examples",
    "normalize_pixels",
    "read_card",
    "read_embeddings",
    "read_reinforced_samples",
    "read_samples",
    "read_shards",
    "read_text_input",
    "train_tokenizer",
    "write_card",
    "write_shard",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    try:
        return _import(name)
    except AttributeError:
        datasets = import_module("mobileclip.datasets")  # its names work from here, too, through 0.1
        if name not in datasets.__all__:
            raise
        return getattr(datasets, name)
